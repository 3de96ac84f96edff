package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/granary-oci/granary/simtest/pages"
)

// notRun are commands of the documents that take what no test has: a cluster, an init
// system or Docker. What they do is tested otherwise, where it says so; simtest/machine runs
// those of a machine, and simtest/kubernetes those of kubectl and helm, as they are written.
var notRun = []string{
	"kubectl -n kube-system rollout status ",
	"kubectl -n kube-system create secret ", // the manifests name this secret: TestManifestsAreTheRenderedChart
	"kubectl -n kube-system logs ",
	"kubectl -n kube-system wait ",        // the job itself: TestDaemonSet
	"kubectl -n kube-system edit secret ", // secrets are read again: simtest/peers
	"kubectl -n kube-system port-forward ",
	"kubectl delete -f ",
	"kubectl -n kube-system delete ",
	"helm uninstall granary ", // its hooks: TestDaemonSet
	"helm rollback granary ",
	"systemctl ",                                // simtest/machine; the units: TestUnitsAreRight
	"docker compose up -d",                      // its services: TestCompose
	"docker build -f deploy/docker/Dockerfile ", // by podman: TestImage
	"make release",                              // .ci/run, and TestRelease
}

// TestDocumentedCommands runs the commands of the pages in deploy, in order.
func TestDocumentedCommands(t *testing.T) {
	d := newDocs(t)
	for _, page := range []string{"README.md", "sizing.md", "tuning.md", "upgrade.md", "SECURITY.md"} {
		dir := d.work
		for _, line := range commandsOf(t, page) {
			if to, ok := strings.CutPrefix(line, "cd "); ok {
				dir = filepath.Join(d.work, to)
				continue
			}
			if err := d.run(t, dir, strings.ReplaceAll(line, "sudo ", "")); err != nil {
				t.Errorf("%s: %s: %v", page, line, err)
			}
			if strings.Contains(line, "docker compose") {
				dir = d.work
			}
		}
	}
	// What was put together by hand is what a node reads.
	out, err := run(nil, d.binary, "config", "--config", filepath.Join(d.root, "etc/granary/config.yaml"))
	if !strings.Contains(string(must(t, out, err)), "one.example.com:5053") {
		t.Errorf("the configuration of recipe 2 is\n%s", out)
	}
}

// commandsOf returns the lines of a page's blocks of shell.
func commandsOf(t *testing.T, page string) []string {
	t.Helper()
	p, err := pages.Read("../../deploy/" + page)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(p.Commands()...)
}

// docs is where commands are run: a machine's files, a copy of what the reader has before
// them, and a rendered pod.
type docs struct {
	root, work string
	binary     string
	lab        *lab
	pod        *pod
}

func newDocs(t *testing.T) *docs {
	t.Helper()
	d := &docs{root: t.TempDir(), work: t.TempDir(), lab: newLab(t, 2)}
	d.binary = filepath.Join(d.lab.rootfs, "granary")
	for _, args := range [][]string{
		{"cp", "-r", "../../deploy", d.work + "/deploy"}, {"cp", d.binary, d.work + "/granary-linux-amd64"},
		{"mkdir", "-p", d.root + "/etc/systemd/system", d.root + "/usr/local/bin", d.root + "/etc/containerd", d.root + "/etc/docker", d.root + "/etc/containers"},
	} {
		out, err := run(nil, args[0], args[1:]...)
		must(t, out, err)
	}
	objects := render(t, "--set", "upstreams.docker\\.io=http://"+outsideAddress+":5000", "--set", "data.cacheSize=1GiB")
	d.lab.know(objects)
	d.pod = d.lab.newPod(t, d.lab.machines[0], "granary", one(t, objects, "DaemonSet", "granary").Spec.Template, objects)
	if err := os.MkdirAll(filepath.Join(d.lab.machines[0].root, "etc/containerd/certs.d/_default"), 0o755); err != nil {
		t.Fatal(err)
	}
	d.pod.start(t)
	t.Cleanup(func() { d.pod.stop(t) })
	d.pod.ready(t)
	return d
}

// run runs one command, where it is run if it is run at all.
func (d *docs) run(t *testing.T, dir, line string) error {
	t.Helper()
	for _, prefix := range notRun {
		if strings.HasPrefix(line, prefix) {
			return nil
		}
	}
	args := words(line)
	inPod := []string{"kubectl", "-n", namespace, "exec", "ds/granary", "--"}
	switch {
	case strings.HasPrefix(line, "helm upgrade --install granary deploy/helm/granary "):
		args[4] = chart
		args = slices.DeleteFunc(args, func(a string) bool { return a == "--reset-then-reuse-values" }) // there is nothing to reuse
		decoded(t, helmTemplate(t, args[3:]))
	case strings.HasPrefix(line, "kubectl apply -f "):
		p, err := os.ReadFile(filepath.Join(d.work, args[3]))
		decoded(t, must(t, p, err))
	case strings.HasPrefix(line, strings.Join(inPod, " ")):
		return d.inPod(args[len(inPod):])
	case strings.HasPrefix(line, "granary serve "):
		d.serve(t, args[1:])
	case strings.HasPrefix(line, "granary configure "):
		_, err := run(nil, d.binary, append(args[1:], "--root", d.root)...)
		return err
	case args[0] == "granary":
		return d.inPod(append([]string{"/granary"}, args[1:]...))
	default:
		return d.onMachine(dir, line)
	}
	return nil
}

func helmTemplate(t *testing.T, args []string) []byte {
	t.Helper()
	out, err := helm(t, "template", args...)
	return must(t, out, err)
}

// words splits a command, of which a word may be quoted.
func words(line string) (all []string) {
	for _, m := range regexp.MustCompile(`'([^']*)'|([^ ]+)`).FindAllStringSubmatch(line, -1) {
		all = append(all, m[1]+m[2])
	}
	return all
}

// inPod runs a command in the pod, which can write to its data directory alone.
func (d *docs) inPod(args []string) error {
	var inside []string
	for _, a := range args {
		inside = append(inside, strings.ReplaceAll(a, "/media/disk/", "/var/lib/granary/"))
	}
	out, err := d.pod.exec(inside...)
	if err != nil {
		return errorOf(err, out)
	}
	return nil
}

// onMachine runs a line of shell on the machine's files.
func (d *docs) onMachine(dir, line string) error {
	line = regexp.MustCompile(`( )(/etc/|/usr/local/)`).ReplaceAllString(line, " "+d.root+"$2")
	cmd := exec.Command("sh", "-c", "set -e; "+line)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return errorOf(err, string(out))
	}
	return nil
}

// serve runs a node by its arguments, on a machine of its own, until it is ready.
func (d *docs) serve(t *testing.T, args []string) {
	t.Helper()
	no := false
	c := container{Name: "serve", Args: args, SecurityContext: securityContext{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: true}}
	c.VolumeMounts = []volumeMount{{Name: "data", MountPath: "/var/lib/granary"}}
	c.Resources.Limits = map[string]string{"memory": "512Mi"}
	c.StartupProbe = &probe{PeriodSeconds: 1, FailureThreshold: 60}
	c.StartupProbe.Exec.Command = []string{"/granary", "pod", "check"}
	c.ReadinessProbe, c.LivenessProbe = c.StartupProbe, c.StartupProbe
	tmpl := template{Spec: podSpec{Containers: []container{c}, TerminationGracePeriodSeconds: 45}}
	tmpl.Spec.Volumes = []volume{{Name: "data", HostPath: &struct{ Path, Type string }{Path: "/var/lib/granary"}}}
	p := d.lab.newPod(t, d.lab.machines[1], "serve", tmpl, nil)
	p.start(t)
	p.ready(t)
	p.stop(t)
}
