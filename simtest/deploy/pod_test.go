package deploy

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// podSpec is what is read of a pod's specification.
type podSpec struct {
	InitContainers, Containers    []container
	Volumes                       []volume
	HostNetwork                   bool
	DNSPolicy                     string
	TerminationGracePeriodSeconds int
	SecurityContext               struct{ FSGroup int }
	AutomountServiceAccountToken  *bool
	PriorityClassName             string
}

type container struct {
	Name, Image                                 string
	Command, Args                               []string
	Env                                         []envVar
	Ports                                       []port
	StartupProbe, ReadinessProbe, LivenessProbe *probe
	SecurityContext                             securityContext
	VolumeMounts                                []volumeMount
	Resources                                   struct{ Limits map[string]string }
}

type envVar struct {
	Name, Value string
	ValueFrom   struct{ FieldRef struct{ FieldPath string } }
}

type port struct {
	Name                    string
	ContainerPort, HostPort int
	HostIP, Protocol        string
}

type probe struct {
	Exec                            struct{ Command []string }
	HTTPGet                         *struct{ Path string }
	PeriodSeconds, FailureThreshold int
}

type securityContext struct {
	RunAsUser, RunAsGroup          int
	RunAsNonRoot, Privileged       bool
	AllowPrivilegeEscalation       *bool
	ReadOnlyRootFilesystem         bool
	Capabilities                   struct{ Add, Drop []string }
	SeccompProfile, SELinuxOptions *struct{}
}

type volume struct {
	Name     string
	HostPath *struct{ Path, Type string }
	Secret   *struct {
		SecretName  string
		DefaultMode fsMode
	}
	ConfigMap *struct{ Name string }
}

// fsMode is the mode of the files of a volume.
type fsMode = os.FileMode

type volumeMount struct {
	Name, MountPath, MountPropagation string
	ReadOnly                          bool
}

// pod is a pod on a machine of the lab.
type pod struct {
	lab     *lab
	host    *machine
	name    string
	labels  map[string]string
	spec    podSpec
	dir     string            // of its volumes that are no directories of the node
	volumes map[string]string // directories, by name of the volume
	main    *process
	mainID  string // of the main container
}

// newPod makes a pod's volumes, as the kubelet does: directories of the node are root's.
func (l *lab) newPod(t *testing.T, m *machine, name string, tmpl template, objects []object) *pod {
	t.Helper()
	p := &pod{lab: l, host: m, name: name, labels: tmpl.Metadata.Labels, spec: tmpl.Spec, dir: t.TempDir(), volumes: make(map[string]string)}
	for _, v := range tmpl.Spec.Volumes {
		dir := filepath.Join(p.dir, v.Name)
		switch {
		case v.HostPath != nil:
			dir = filepath.Join(m.root, v.HostPath.Path)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		case v.Secret != nil:
			files := make(map[string]string)
			for key, value := range one(t, objects, "Secret", v.Secret.SecretName).Data {
				plain, err := base64.StdEncoding.DecodeString(value)
				files[key] = string(must(t, plain, err))
			}
			p.write(t, dir, files, v.Secret.DefaultMode)
		case v.ConfigMap != nil:
			p.write(t, dir, one(t, objects, "ConfigMap", v.ConfigMap.Name).Data, 0o644)
		}
		p.volumes[v.Name] = dir
	}
	p.write(t, filepath.Join(p.dir, "etc"), map[string]string{
		"resolv.conf": "nameserver " + outsideAddress + "\nsearch " + namespace + ".svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
	}, 0o644)
	return p
}

// write makes a volume's files, for the pod's group.
func (p *pod) write(t *testing.T, dir string, files map[string]string, mode os.FileMode) {
	t.Helper()
	err := os.MkdirAll(dir, 0o755)
	for name, text := range files {
		file := filepath.Join(dir, name)
		err = errors.Join(err, os.WriteFile(file, []byte(text), 0o600), os.Chown(file, 0, p.spec.SecurityContext.FSGroup), os.Chmod(file, mode))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// env returns a container's environment.
func (p *pod) env(c container) (all []string, value map[string]string) {
	value = map[string]string{}
	for _, e := range c.Env {
		v := e.Value
		switch path := e.ValueFrom.FieldRef.FieldPath; {
		case path == "status.podIP":
			v = p.host.address
		case strings.HasPrefix(path, "metadata.labels['"):
			v = p.labels[strings.TrimSuffix(strings.TrimPrefix(path, "metadata.labels['"), "']")]
		}
		value[e.Name] = v
		all = append(all, e.Name+"="+v)
	}
	return all, value
}

// bundle writes the specification of a container for runc, and returns its directory.
func (p *pod) bundle(t *testing.T, c container) string {
	t.Helper()
	env, values := p.env(c)
	var args []string
	for _, a := range append(append([]string{}, p.lab.entrypoint...), c.Args...) {
		for name, v := range values {
			a = strings.ReplaceAll(a, "$("+name+")", v)
		}
		args = append(args, a)
	}
	caps := []string{}
	for _, name := range c.SecurityContext.Capabilities.Add {
		caps = append(caps, "CAP_"+name)
	}
	confined := !c.SecurityContext.Privileged
	if !confined {
		caps = allCapabilities(t)
	}
	effective := caps
	if c.SecurityContext.RunAsUser != 0 {
		effective = []string{} // what the kernel leaves to a user at execve
	}
	root := "rslave"
	mounts := []map[string]any{
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755", "size=64k"}},
		{"destination": "/etc/resolv.conf", "type": "bind", "source": filepath.Join(p.dir, "etc/resolv.conf"), "options": []string{"bind", "ro"}},
	}
	for _, v := range c.VolumeMounts {
		options := []string{"rbind", propagation[v.MountPropagation], "rw"}
		if v.MountPropagation == "Bidirectional" {
			root = "rshared"
		}
		if v.ReadOnly {
			options[2] = "ro"
		}
		mounts = append(mounts, map[string]any{"destination": v.MountPath, "type": "bind", "source": p.volumes[v.Name], "options": options})
	}
	resources := map[string]any{"memory": map[string]any{"limit": bytesOf(t, c.Resources.Limits["memory"])}}
	if !confined { // it gets the node's devices
		mounts[1] = map[string]any{"destination": "/dev", "type": "bind", "source": "/dev", "options": []string{"rbind", "rprivate"}}
		resources["devices"] = []map[string]any{{"allow": true, "access": "rwm"}}
	}
	spec := map[string]any{
		"ociVersion": "1.0.2", "hostname": p.name, "mounts": mounts,
		"root": map[string]any{"path": p.lab.rootfs, "readonly": c.SecurityContext.ReadOnlyRootFilesystem},
		"process": map[string]any{
			"args": args, "env": env, "cwd": "/", "noNewPrivileges": confined && !*c.SecurityContext.AllowPrivilegeEscalation,
			"user":         map[string]any{"uid": c.SecurityContext.RunAsUser, "gid": c.SecurityContext.RunAsGroup, "additionalGids": []int{p.spec.SecurityContext.FSGroup}},
			"capabilities": map[string]any{"bounding": caps, "permitted": effective, "effective": effective, "inheritable": []string{}},
		},
		"linux": map[string]any{
			"rootfsPropagation": root, // as the runtime has it for mounts that are to be seen outside
			"namespaces":        []map[string]any{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network", "path": "/run/netns/" + p.host.space}},
			"resources":         resources,
		},
	}
	out, err := json.Marshal(spec)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), must(t, out, err), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// propagation is what the kubelet makes of a mount's propagation.
var propagation = map[string]string{"": "rprivate", "HostToContainer": "rslave", "Bidirectional": "rshared"}

// capabilities are the kernel's, in the order of their numbers (linux/capability.h).
var capabilities = strings.Fields("CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW " +
	"IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE " +
	"AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE")

// allCapabilities returns the names of those that this machine has to give.
func allCapabilities(t *testing.T) (all []string) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(must(t, status, err)), "CapBnd:\t")
	set, err := strconv.ParseUint(strings.Fields(rest)[0], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range capabilities {
		if set&(1<<i) != 0 {
			all = append(all, "CAP_"+name)
		}
	}
	return all
}

// bytesOf reads a quantity in Mi.
func bytesOf(t *testing.T, quantity string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSuffix(quantity, "Mi"))
	if err != nil {
		t.Fatalf("the memory limit %q is not in Mi", quantity)
	}
	return n << 20
}

// runc is a command on a container of the lab.
func (l *lab) runc(args ...string) *exec.Cmd {
	return exec.Command("runc", append([]string{"--root", l.state}, args...)...)
}

// end runs a container to its end and returns what it prints.
func (p *pod) end(t *testing.T, c container) (string, error) {
	t.Helper()
	out, err := p.lab.runc("run", "--bundle", p.bundle(t, c), p.lab.id(p.name+"-"+c.Name)).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("container %s of pod %s: %w\n%s", c.Name, p.name, err, out)
	}
	return string(out), nil
}

// start runs the init containers and starts the container.
func (p *pod) start(t *testing.T) {
	t.Helper()
	for _, c := range p.spec.InitContainers {
		out, err := p.end(t, c)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s: %s", p.name, c.Name, out)
	}
	c := p.spec.Containers[0]
	p.mainID = p.lab.id(p.name + "-" + c.Name)
	p.main = startProcess(t, p.lab.runc("run", "--bundle", p.bundle(t, c), p.mainID))
	p.lab.enter(p)
}

// exec runs a command in the pod's container, as kubectl exec does.
func (p *pod) exec(command ...string) (string, error) {
	out, err := p.lab.runc(append([]string{"exec", p.mainID}, command...)...).CombinedOutput()
	return string(out), err
}

// ask asks once what a probe asks.
func (p *pod) ask(probe *probe) error {
	out, err := p.exec(probe.Exec.Command...)
	if err != nil {
		return fmt.Errorf("%v: %w: %s", probe.Exec.Command, err, out)
	}
	return nil
}

// await asks a probe until it is content, as often as it says.
func (p *pod) await(t *testing.T, probe *probe) {
	t.Helper()
	var err error
	for range probe.FailureThreshold {
		if err = p.ask(probe); err == nil {
			return
		}
		select {
		case <-p.main.done:
			t.Fatalf("%s has ended", p.name)
		case <-time.After(time.Second):
		}
	}
	t.Fatal(err)
}

// ready waits for all three probes.
func (p *pod) ready(t *testing.T) {
	t.Helper()
	c := p.spec.Containers[0]
	for _, probe := range []*probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
		p.await(t, probe)
	}
	p.lab.setReady(p)
}

// stop ends the pod as the kubelet does: it is killed if it takes too long, which is a
// failure here.
func (p *pod) stop(t *testing.T) {
	t.Helper()
	p.lab.leave(p)
	if out, err := p.lab.runc("kill", p.mainID, "TERM").CombinedOutput(); err != nil {
		t.Fatalf("kill: %v: %s", err, out)
	}
	select {
	case <-p.main.done:
		if err := p.main.wait(); err != nil {
			t.Errorf("%s ended with %v", p.name, err)
		}
	case <-time.After(time.Duration(p.spec.TerminationGracePeriodSeconds) * time.Second):
		t.Errorf("%s did not end in its grace period", p.name)
		_ = p.lab.runc("kill", p.mainID, "KILL").Run()
		<-p.main.done
	}
}

// status reads /proc/PID/status of the container's process, on this machine.
func (p *pod) status(t *testing.T) string {
	t.Helper()
	out, err := p.lab.runc("state", p.mainID).Output()
	var state struct{ Pid int }
	if err := jsonInto(must(t, out, err), &state); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", state.Pid))
	return string(must(t, text, err))
}
