{{- define "granary.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "granary.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "granary.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "granary.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "granary.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "granary.selector" . }}
{{- end }}

{{- define "granary.selector" -}}
app.kubernetes.io/name: {{ include "granary.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Pods that serve, and no others. */}}
{{- define "granary.nodeSelector" -}}
{{ include "granary.selector" . }}
app.kubernetes.io/component: node
{{- end }}

{{- define "granary.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "granary.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "granary.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "granary.clusterSecret" -}}
{{- .Values.cluster.existingSecret | default (printf "%s-cluster" (include "granary.fullname" .)) }}
{{- end }}

{{/* Headless, also for pods that are not ready: members find each other by it. */}}
{{- define "granary.headless" -}}
{{ include "granary.fullname" . }}-members
{{- end }}

{{- define "granary.onHostNetwork" -}}
{{- if or .Values.hostNetwork .Values.snapshotter.enabled }}true{{ end }}
{{- end }}

{{- define "granary.any" -}}
{{- ternary "[::]" "0.0.0.0" .Values.ipv6 }}
{{- end }}

{{- define "granary.loopback" -}}
{{- ternary "[::1]" "127.0.0.1" .Values.ipv6 }}
{{- end }}

{{/* Where the runtime reaches the mirror. */}}
{{- define "granary.mirrorHost" -}}
{{- if include "granary.onHostNetwork" . }}{{ include "granary.loopback" . }}
{{- else if contains ":" .Values.mirror.hostIP }}[{{ .Values.mirror.hostIP }}]
{{- else if eq .Values.mirror.hostIP "0.0.0.0" }}127.0.0.1
{{- else }}{{ .Values.mirror.hostIP }}
{{- end }}
{{- end }}

{{/* The configuration file of the nodes: what is not plumbing. */}}
{{- define "granary.config" -}}
{{- $c := dict "log-level" .Values.log.level "log-format" .Values.log.format "default-upstream" .Values.defaultUpstream "keep" .Values.keep }}
{{- with .Values.data.cacheSize }}{{ $_ := set $c "cache-size" . }}{{ end }}
{{- with .Values.parents }}{{ $_ := set $c "parent" . }}{{ end }}
{{- if .Values.parentsOnly }}{{ $_ := set $c "parents-only" true }}{{ end }}
{{- with .Values.parentLimits }}{{ $_ := set $c "parent-limit" . }}{{ end }}
{{- with .Values.siteNetwork.name }}{{ $_ := set $c "site-network" . }}{{ end }}
{{- with .Values.siteNetwork.join }}{{ $_ := set $c "site-join" . }}{{ end }}
{{- with .Values.siteNetwork.relays }}{{ $_ := set $c "site-relay" . }}{{ end }}
{{- if .Values.siteNetwork.relayService }}{{ $_ := set $c "site-relay-service" true }}{{ end }}
{{- with .Values.bitswap.peers }}{{ $_ := set $c "bitswap-peer" . }}{{ end }}
{{- if ne .Values.wan "time" }}{{ $_ := set $c "wan" .Values.wan }}{{ end }}
{{- if .Values.site.enabled }}
{{- if not (or .Values.site.children .Values.site.tokenSecret) }}{{ fail "site.enabled: name those who may ask, in site.children or site.tokenSecret" }}{{ end }}
{{- with .Values.site.children }}{{ $_ := set $c "child" . }}{{ end }}
{{- end }}
{{- with .Values.contentDir }}{{ $_ := set $c "content-dir" (list .) }}{{ end }}
{{- with .Values.registries }}{{ $_ := set $c "registries" . }}{{ end }}
{{- with .Values.upstreams }}{{ $_ := set $c "upstream" . }}{{ end }}
{{- with .Values.tagPolicies }}{{ $_ := set $c "tag-policy" . }}{{ end }}
{{- with .Values.credentials.share }}{{ $_ := set $c "node-credentials" . }}{{ end }}
{{- with .Values.limits.upload }}{{ $_ := set $c "upload-limit" . }}{{ end }}
{{- with .Values.limits.download }}{{ $_ := set $c "download-limit" . }}{{ end }}
{{- with .Values.limits.upstream }}{{ $_ := set $c "upstream-limit" . }}{{ end }}
{{- if .Values.upstreamCAs.configMap }}
{{- $files := dict }}
{{- range $host, $key := .Values.upstreamCAs.files }}{{ $_ := set $files $host (printf "/etc/granary/ca/%s" $key) }}{{ end }}
{{- $_ := set $c "upstream-ca-file" $files }}
{{- end }}
{{- toYaml (merge (deepCopy .Values.config) $c) }}
{{- end }}

{{/* Whether anybody is asked for the tokens of other sites; empty is no. */}}
{{- define "granary.siteTokens" -}}
{{- if and .Values.site.tokenSecret (or .Values.site.enabled .Values.siteNetwork.name .Values.gateway.enabled) }}true{{ end }}
{{- end }}

{{/* What holds for every container but a privileged one. */}}
{{- define "granary.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
{{- end }}

{{/* An init container, or one of the hook, that changes files of the node's. */}}
{{- define "granary.asRoot" -}}
runAsUser: 0
runAsGroup: 0
runAsNonRoot: false
{{ include "granary.confined" . }}
{{- end }}

{{/* granary configure containerd, with more arguments: (list . "--undo"). */}}
{{- define "granary.configure" -}}
{{- $top := index . 0 -}}
image: {{ include "granary.image" $top }}
imagePullPolicy: {{ $top.Values.image.pullPolicy }}
args:
  - configure
  - containerd
  - --root=/host
  - --runtime-config={{ $top.Values.containerd.hostPath }}/config.toml
  - --runtime-dir={{ $top.Values.containerd.hostPath }}/certs.d
  {{- range rest . }}
  - {{ . }}
  {{- end }}
  {{- range $top.Values.containerd.registries }}
  - --registry={{ . }}
  {{- end }}
  {{- with $top.Values.containerd.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
securityContext:
  {{- include "granary.asRoot" $top | nindent 2 }}
  capabilities:
    drop: [ALL]
resources:
  {{- toYaml $top.Values.initResources | nindent 2 }}
volumeMounts:
  - name: containerd
    mountPath: /host{{ $top.Values.containerd.hostPath }}
{{- end }}

{{/* What the kubelet asks: (list . "/readyz"). */}}
{{- define "granary.probe" -}}
{{- $top := index . 0 -}}
{{- if $top.Values.admin.exposed -}}
httpGet:
  path: {{ index . 1 }}
  port: admin
{{- else -}}
exec:
  command: [/granary, pod, check, {{ index . 1 }}, "--node=http://{{ include "granary.loopback" $top }}:{{ $top.Values.ports.admin }}"]
{{- end }}
{{- end }}

{{/* Where pods of this release run. */}}
{{- define "granary.placement" -}}
serviceAccountName: {{ include "granary.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* How Prometheus names what it scrapes: by node, which is what people know. */}}
{{- define "granary.scrape" -}}
relabelings:
  - sourceLabels: [__meta_kubernetes_pod_node_name]
    targetLabel: node
{{- end }}

{{- define "granary.hook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
