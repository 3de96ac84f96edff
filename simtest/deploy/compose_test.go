package deploy

import (
	"encoding/base64"
	"path/filepath"
	"slices"
	"testing"
)

// composeFile is what is read of deploy/compose/compose.yaml.
type composeFile struct {
	Services map[string]struct {
		Command     []string
		User        string
		ReadOnly    bool     `json:"read_only"`
		CapDrop     []string `json:"cap_drop"`
		SecurityOpt []string `json:"security_opt"`
		Ports       []struct {
			HostIP string `json:"host_ip"`
			Target int
		}
		Volumes     []struct{ Source, Target string }
		Secrets     []struct{ Source, Target string }
		Healthcheck struct{ Test []string }
	}
}

// TestCompose runs the services of the Compose file on machines that know each other by name.
func TestCompose(t *testing.T) {
	out, err := run(nil, tool(t, "strict"), "compose", "../../deploy/compose/compose.yaml")
	var file composeFile
	if err := jsonInto(must(t, out, err), &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Services) != 3 {
		t.Fatalf("there are %d services", len(file.Services))
	}
	l := newLab(t, 3)
	secret := object{Kind: "Secret", Data: map[string]string{"cluster": base64.StdEncoding.EncodeToString([]byte("a secret of this test alone"))}}
	secret.Metadata.Name = "cluster"
	var pods []*pod
	for name, s := range file.Services {
		if s.User != "" || !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") || s.Ports[0].HostIP != "127.0.0.1" {
			t.Errorf("service %s has too much: %+v", name, s)
		}
		c := container{Name: name, Args: s.Command, Env: []envVar{{Name: "GRANARY_UPSTREAM", Value: outsideAddress + ":5000=http://" + outsideAddress + ":5000"}, {Name: "GRANARY_DATA_DIR", Value: "/var/lib/granary"}}}
		no := false
		c.SecurityContext = securityContext{RunAsUser: 65532, RunAsGroup: 65532, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: true}
		c.Resources.Limits = map[string]string{"memory": "512Mi"}
		c.StartupProbe = &probe{PeriodSeconds: 1, FailureThreshold: 60}
		c.StartupProbe.Exec.Command = s.Healthcheck.Test[1:]
		c.ReadinessProbe, c.LivenessProbe = c.StartupProbe, c.StartupProbe
		tmpl := template{Spec: podSpec{TerminationGracePeriodSeconds: 45}}
		tmpl.Spec.SecurityContext.FSGroup = 65532
		m := l.machines[len(pods)]
		l.set(func() { l.names[name+"."] = m.address })
		// A volume takes its owner from the image, which the init container stands for.
		own := container{Name: "own", Args: []string{"pod", "own", "/var/lib/granary", "65532:65532"}, SecurityContext: securityContext{AllowPrivilegeEscalation: &no}}
		own.SecurityContext.Capabilities.Add = []string{"CHOWN", "DAC_READ_SEARCH", "FOWNER"}
		own.Resources = c.Resources
		for _, v := range s.Volumes {
			tmpl.Spec.Volumes = append(tmpl.Spec.Volumes, volume{Name: v.Source, HostPath: &struct{ Path, Type string }{Path: "/volume"}})
			c.VolumeMounts = append(c.VolumeMounts, volumeMount{Name: v.Source, MountPath: v.Target})
		}
		own.VolumeMounts = c.VolumeMounts
		tmpl.Spec.Volumes = append(tmpl.Spec.Volumes, secretVolume(s.Secrets[0].Source))
		c.VolumeMounts = append(c.VolumeMounts, volumeMount{Name: s.Secrets[0].Source, MountPath: filepath.Dir(s.Secrets[0].Target), ReadOnly: true})
		tmpl.Spec.InitContainers, tmpl.Spec.Containers = []container{own}, []container{c}
		p := l.newPod(t, m, name, tmpl, []object{secret})
		p.start(t)
		pods = append(pods, p)
	}
	for _, p := range pods {
		p.ready(t)
		p.meets(t, 3)
	}
	for _, p := range pods {
		if out, err := p.exec("/granary", "pull", imageRef(0)); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	if n, size := l.registry.sentTo("granary"), int64(layersOfImage*layerSize); n < size || n > size*11/10 {
		t.Errorf("%d bytes have left the registry, want about %d", n, size)
	}
	for _, p := range pods {
		p.stop(t)
	}
}

func secretVolume(name string) volume {
	var v volume
	v.Name = name
	v.Secret = &struct {
		SecretName  string
		DefaultMode fsMode
	}{name, 0o440}
	return v
}
