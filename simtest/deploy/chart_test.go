package deploy

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// variants are the values files of testdata, and none.
func variants(t *testing.T) map[string][]string {
	t.Helper()
	files, err := filepath.Glob("testdata/values/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no values to render with", err)
	}
	all := map[string][]string{"default": nil}
	for _, f := range files {
		all[strings.TrimSuffix(filepath.Base(f), ".yaml")] = []string{"--values", f}
	}
	return all
}

// TestEveryOptionRendersWhatKubernetesReads lints the chart and decodes it strictly.
func TestEveryOptionRendersWhatKubernetesReads(t *testing.T) {
	want := map[string]map[string]int{
		"default":     {"ServiceAccount": 1, "Secret": 2, "ConfigMap": 1, "Service": 2, "DaemonSet": 2, "Job": 1},
		"hostnetwork": {"ServiceAccount": 1, "Secret": 2, "ConfigMap": 1, "Service": 2, "DaemonSet": 2, "Job": 1},
		"snapshotter": {"ServiceAccount": 1, "Secret": 2, "ConfigMap": 1, "Service": 2, "DaemonSet": 2, "Job": 1},
		"everything":  {"ServiceAccount": 1, "ConfigMap": 1, "Service": 2, "DaemonSet": 2, "Job": 1},
		"sites":       {"ServiceAccount": 1, "Secret": 2, "ConfigMap": 1, "Service": 3, "DaemonSet": 2, "Job": 1, "NetworkPolicy": 1},
		"bare":        {"Secret": 2, "ConfigMap": 1, "Service": 1, "DaemonSet": 1},
		"monitoring": {"ServiceAccount": 1, "Secret": 2, "ConfigMap": 2, "Service": 2, "DaemonSet": 2, "Job": 1, "NetworkPolicy": 1, "PodDisruptionBudget": 1,
			"ServiceMonitor": 1, "PodMonitor": 1, "PrometheusRule": 1},
	}
	for name, args := range variants(t) {
		out, err := helm(t, "lint", append([]string{chart, "--strict"}, args...)...)
		must(t, out, err)
		if got := kinds(render(t, args...)); !maps.Equal(got, want[name]) {
			t.Errorf("%s renders %v, want %v", name, got, want[name])
		}
	}
}

// TestEveryValueIsOfUse compares what the chart reads with values.yaml: a value without
// effect, or without a line that tells of it, is a promise that nobody keeps.
func TestEveryValueIsOfUse(t *testing.T) {
	values, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	must(t, values, err)
	files, _ := filepath.Glob(filepath.Join(chart, "templates/*"))
	var templates []byte
	for _, f := range files {
		p, err := os.ReadFile(f)
		templates = append(templates, must(t, p, err)...)
	}
	reads := func(name string, whole bool) bool {
		end := `\b`
		if whole {
			end = `[^.A-Za-z0-9]`
		}
		return regexp.MustCompile(`\.Values\.` + regexp.QuoteMeta(name) + end).Match(templates)
	}
	lines := strings.Split(string(values), "\n")
	told := func(i int) bool { return strings.HasPrefix(strings.TrimSpace(lines[i-1]), "#") }
	key, parent, parentTold := regexp.MustCompile(`^( ? ?)([A-Za-z0-9]+):(.*)`), "", false
	for i, line := range lines {
		m := key.FindStringSubmatch(line)
		switch {
		case m == nil:
		case m[1] == "":
			parent, parentTold = m[2], told(i)
			if !reads(parent, false) {
				t.Errorf("no template reads %s", parent)
			}
			if m[3] != "" && !parentTold {
				t.Errorf("values.yaml does not tell of %s", parent)
			}
		default:
			if name := parent + "." + m[2]; !reads(name, false) && !reads(parent, true) {
				t.Errorf("no template reads %s", name)
			}
			if !parentTold && !told(i) {
				t.Errorf("values.yaml does not tell of %s.%s", parent, m[2])
			}
		}
	}
}

// TestUnknownValuesAreRefused: a value with a typing mistake must not be one without effect.
func TestUnknownValuesAreRefused(t *testing.T) {
	for _, bad := range []string{
		"bogus=1", "mirror.prot=1", "mirror.port=0", "mirror.port=http", "keep=some", "image.digest=latest", "data.hostPath=relative", "data.cacheSize=much",
		"snapshotter.enabled=perhaps", "registries=docker.io", "log.level=loud", "upstreams.docker\\.io=5", "metrics.podMonitor.interval=often",
		"credentials.share.ghcr\\.io=yes", "cluster.join={here}", "updateStrategy.rollingUpdate.maxSurge=1", "probes.startup.exec=1",
		"parents={http://hub}", "parents={/ip4/192.0.2.1/tcp/5054}", "parentsOnly=perhaps", "site.port=0", "site.children={no id}", "site.enabled=true",
		"parentLimits={much}", "parentLimits={5MiB/week}", "site.advertise={hub.example.com}", "siteNetwork.name=two words", "siteNetwork.join={/ip4/192.0.2.1/tcp/5054}",
		"siteNetwork.relays={hub}", "gateway.port=0", "gateway.enabled=perhaps", "bitswap.port=http", "bitswap.peers={/ip4/192.0.2.1/tcp/4001}", "parentCA.key=a/b",
	} {
		if out, err := helm(t, "template", "granary", chart, "--set", bad); err == nil {
			t.Errorf("%s is taken:\n%s", bad, out)
		}
	}
	if _, err := helm(t, "template", "granary", chart, "--set", "metrics.podMonitor.enabled=true"); err == nil || !strings.Contains(err.Error(), "admin.exposed") {
		t.Errorf("a monitor of a listener on loopback: %v", err)
	}
}

// TestNoPrivilegesUnlessAsked looks at each container of each variant.
func TestNoPrivilegesUnlessAsked(t *testing.T) {
	capabilities := map[string][]string{"own": {"CHOWN", "DAC_READ_SEARCH", "FOWNER"}}
	for name, args := range variants(t) {
		for _, o := range render(t, args...) {
			p := o.Spec.Template.Spec
			if len(p.Containers) == 0 {
				continue
			}
			if p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken {
				t.Errorf("%s: %s gets a token", name, o.Metadata.Name)
			}
			if strings.Contains(o.text, `"hostPID":true`) || !strings.Contains(o.text, `"seccompProfile":{"type":"RuntimeDefault"}`) {
				t.Errorf("%s: %s is not confined", name, o.Metadata.Name)
			}
			for _, c := range append(p.InitContainers, p.Containers...) {
				s := c.SecurityContext
				if c.Name == "granary" && name == "snapshotter" {
					if !s.Privileged || s.RunAsUser != 0 {
						t.Error("the snapshotter cannot mount")
					}
					continue
				}
				if s.Privileged || !s.ReadOnlyRootFilesystem || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
					!slices.Equal(s.Capabilities.Drop, []string{"ALL"}) || !slices.Equal(s.Capabilities.Add, capabilities[c.Name]) {
					t.Errorf("%s: container %s has too much: %+v", name, c.Name, s)
				}
				if mayBeRoot := slices.Contains([]string{"own", "configure", "undo"}, c.Name); s.RunAsNonRoot == mayBeRoot || s.RunAsUser == 0 != mayBeRoot {
					t.Errorf("%s: container %s runs as %d", name, c.Name, s.RunAsUser)
				}
			}
		}
	}
}

// TestTheMirrorIsTheNodesAlone: by default nobody but the node reaches the mirror, and
// nobody at all the admin listener.
func TestTheMirrorIsTheNodesAlone(t *testing.T) {
	c := one(t, render(t), "DaemonSet", "granary").Spec.Template.Spec.Containers[0]
	for _, p := range c.Ports {
		if (p.HostPort != 0) != (p.Name == "mirror") || p.HostPort != 0 && p.HostIP != "127.0.0.1" || p.ContainerPort == 5051 {
			t.Errorf("port %+v", p)
		}
	}
	if !slices.Contains(c.Args, "--admin=127.0.0.1:5051") || len(c.LivenessProbe.Exec.Command) == 0 {
		t.Errorf("the admin listener: %v, probe %+v", c.Args, c.LivenessProbe)
	}
	c = one(t, render(t, variants(t)["hostnetwork"]...), "DaemonSet", "granary").Spec.Template.Spec.Containers[0]
	if !slices.Contains(c.Args, "--listen=[::1]:30020") || !slices.Contains(c.Args, "--admin=[::1]:31051") {
		t.Errorf("on the node's network: %v", c.Args)
	}
	c = one(t, render(t, variants(t)["monitoring"]...), "DaemonSet", "granary").Spec.Template.Spec.Containers[0]
	if c.LivenessProbe.HTTPGet == nil || c.LivenessProbe.HTTPGet.Path != "/healthz" || c.ReadinessProbe.HTTPGet.Path != "/readyz" {
		t.Errorf("probes of a listener that is exposed: %+v", c.LivenessProbe)
	}
}

// TestChildrenReachTheirParent: a hub's port is the node's, open to other sites, on both networks of a pod.
func TestChildrenReachTheirParent(t *testing.T) {
	site := []string{"--set", "site.enabled=true", "--set", "site.tokenSecret=theirs", "--set", "networkPolicy.enabled=true"}
	for _, more := range [][]string{nil, {"--set", "hostNetwork=true"}} {
		all := render(t, append(site, more...)...)
		c := one(t, all, "DaemonSet", "granary").Spec.Template.Spec.Containers[0]
		i := slices.IndexFunc(c.Ports, func(p port) bool { return p.Name == "site" })
		want := 5054
		if more != nil {
			want = 0 // it is on the node's network already
		}
		if i < 0 || c.Ports[i].ContainerPort != 5054 || c.Ports[i].HostPort != want || c.Ports[i].Protocol != "UDP" || c.Ports[i].HostIP != "" {
			t.Errorf("with %v: ports %+v", more, c.Ports)
		}
		if policy := one(t, all, "NetworkPolicy", "granary").text; !strings.Contains(policy, `{"ports":[{"protocol":"UDP","port":5054}]}`) {
			t.Errorf("with %v the policy is %s", more, policy)
		}
	}
}

// settingsOf are what a node is to make of some variants: the name of a flag and its value.
var settingsOf = map[string][]string{
	"everything": {
		"cache-size 1.5TiB", "keep shared", "upload-limit 50MiB", "tag-policy docker.io/library/*=ttl=10m,registry.corp/release/*=pin",
		"upstream docker.io=https://mirror.corp,https://registry-1.docker.io;registry.corp=http://10.0.0.5:5000", "registries docker.io,*.corp,!bad.corp",
		"upstream-ca-file harbor.corp=/etc/granary/ca/harbor.pem", "node-credentials ghcr.io=share", "max-stale 24h0m0s", "weight 20", "public-for 1m0s",
		"content-dir /var/lib/containerd/io.containerd.content.v1.content", "docker-config /etc/granary/docker/config.json", "default-upstream registry.corp",
		"parent https://hub.example.com:5054,/dns4/hub.example.com/udp/5054/quic-v1/p2p/12D3KooWHsDnk2Z1FsLd1KWJvJUAvgEnq11kPT9efFysRRkbyDMt", "parents-only true",
		"parent-token-file /etc/granary/parent/token", "site-listen /ip4/0.0.0.0/udp/5064/quic-v1", "child 12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUj2kj6vnc6iDEp",
		"gateway-token-file /etc/granary/site/token",
	},
	"sites": {
		"parent-limit 5MiB/s@08:00-18:00,hub.example.com=20GiB/day", "parent-ca-file /etc/granary/parent-ca/hub.pem", "parent-token-file /etc/granary/parent/token",
		"gateway-token-file /etc/granary/site/token", "gateway-listen 0.0.0.0:8055", "site-network corp", "site-relay-service true", "bitswap-listen /ip4/0.0.0.0/tcp/4001",
		"site-listen /ip4/0.0.0.0/udp/5054/quic-v1,/ip4/0.0.0.0/tcp/5054", "site-join /ip4/192.0.2.1/udp/5054/quic-v1/p2p/12D3KooWHsDnk2Z1FsLd1KWJvJUAvgEnq11kPT9efFysRRkbyDMt",
		"site-advertise /ip4/$(HOST_IP)/udp/5054/quic-v1,/ip4/$(HOST_IP)/tcp/5054,/dns4/one.example.com/udp/5054/quic-v1",
		"site-relay /ip4/192.0.2.2/tcp/5054/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUj2kj6vnc6iDEp",
		"bitswap-peer /ip4/192.0.2.7/tcp/4001/p2p/12D3KooWHsDnk2Z1FsLd1KWJvJUAvgEnq11kPT9efFysRRkbyDMt",
	},
}

// TestOthersReachTheirPorts: bitswap's and a parent's by TCP are the node's and open to all, the gateway's is a
// service's, for those that the policy names.
func TestOthersReachTheirPorts(t *testing.T) {
	all := render(t, variants(t)["sites"]...)
	c := one(t, all, "DaemonSet", "granary").Spec.Template.Spec.Containers[0]
	for _, want := range []port{{Name: "site-tcp", ContainerPort: 5054, HostPort: 5054}, {Name: "bitswap", ContainerPort: 4001, HostPort: 4001}, {Name: "gateway", ContainerPort: 8055}} {
		if !slices.Contains(c.Ports, want) {
			t.Errorf("there is no port %+v in %+v", want, c.Ports)
		}
	}
	if s := one(t, all, "Service", "granary-gateway").text; !strings.Contains(s, `"ports":[{"name":"http","port":8055,"targetPort":"gateway"}]`) {
		t.Errorf("the gateway's service is %s", s)
	}
	policy := one(t, all, "NetworkPolicy", "granary").text
	for _, want := range []string{
		`{"ports":[{"protocol":"UDP","port":5054},{"port":5054}]}`, `{"ports":[{"port":4001}]}`,
		`{"ports":[{"port":8055}],"from":[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"ingress"}}}]}`,
	} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy has no %s: %s", want, policy)
		}
	}
	if c := one(t, render(t, append(variants(t)["sites"], "--set", "hostNetwork=true")...), "DaemonSet", "granary").Spec.Template.Spec.Containers[0]; slices.ContainsFunc(c.Args, func(a string) bool { return strings.Contains(a, "HOST_IP") }) ||
		slices.ContainsFunc(c.Ports, func(p port) bool { return p.HostPort != 0 }) {
		t.Errorf("on the node's network: %v, %+v", c.Args, c.Ports)
	}
}

// TestSettingsAreThoseOfTheNode gives the rendered configuration to the node itself.
func TestSettingsAreThoseOfTheNode(t *testing.T) {
	binary, err := buildBinary()
	if err != nil {
		t.Fatal(err)
	}
	// What guards an admin listener that others reach is asked of a program that has it.
	help, err := run(nil, binary, "serve", "--help")
	guarded := bytes.Contains(must(t, help, err), []byte("--admin-open"))
	for name, args := range variants(t) {
		all := render(t, args...)
		i := slices.IndexFunc(all, func(o object) bool { return o.Data["config.yaml"] != "" })
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(all[i].Data["config.yaml"]), 0o600); err != nil {
			t.Fatal(err)
		}
		set := all[slices.IndexFunc(all, func(o object) bool { return o.Kind == "DaemonSet" && !strings.HasSuffix(o.Metadata.Name, "-undo") })]
		command := []string{"config", "--config=" + file}
		for _, a := range set.Spec.Template.Spec.Containers[0].Args[1:] {
			if !strings.HasPrefix(a, "--config=") && (guarded || !strings.HasPrefix(a, "--admin-")) {
				command = append(command, a)
			}
		}
		out, err := run(nil, binary, command...)
		must(t, out, err)
		for _, want := range settingsOf[name] {
			name, value, _ := strings.Cut(want, " ")
			if !regexp.MustCompile(`(?m)^`+name+` +`+regexp.QuoteMeta(value)+` `).Match(out) && name != "cache-size" {
				t.Errorf("%s is not %s:\n%s", name, value, out)
			}
		}
	}
}

// TestManifestsAreTheRenderedChart: deploy/manifests is for those without Helm. Their
// cluster's secret they make themselves, and what is a hook of the chart is a file of its own.
func TestManifestsAreTheRenderedChart(t *testing.T) {
	for what, kindsOf := range map[string]map[string]int{
		"granary": {"ServiceAccount": 1, "ConfigMap": 1, "Service": 1, "DaemonSet": 1},
		"undo":    {"Service": 1, "DaemonSet": 1, "Job": 1},
	} {
		out, err := run(nil, "../../deploy/manifests/render", what, tool(t, "helm"))
		want := must(t, out, err)
		got, err := os.ReadFile("../../deploy/manifests/" + what + ".yaml")
		if !bytes.Equal(must(t, got, err), want) {
			t.Errorf("deploy/manifests/%s.yaml is not what deploy/manifests/render prints; run make manifests", what)
		}
		if n := kinds(decoded(t, got)); !maps.Equal(n, kindsOf) {
			t.Errorf("%s.yaml has %v", what, n)
		}
	}
}
