// Command strict decodes what is to be deployed with the types of those who will
// read it, and refuses fields that they do not know, or know twice: objects of
// Kubernetes and of the Prometheus operator, Compose files, and expressions of
// Prometheus, one a line. It prints what it has read as JSON.
//
// It is a module of its own, to keep all these types out of the product's.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/prometheus/promql/parser"
	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func main() {
	var read any
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "kubernetes":
		read, err = objects(os.Stdin)
	case len(os.Args) == 3 && os.Args[1] == "compose":
		read, err = project(os.Args[2])
	case len(os.Args) == 2 && os.Args[1] == "promql":
		read, err = selectors(os.Stdin)
	default:
		fmt.Fprintln(os.Stderr, "usage: strict kubernetes|promql <FILE, or strict compose FILE")
		os.Exit(2)
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(read)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "strict:", err)
		os.Exit(1)
	}
}

// objects reads a stream of YAML documents. The error has all that is wrong.
func objects(r io.Reader) ([]runtime.Object, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		core.AddToScheme, apps.AddToScheme, batch.AddToScheme, policy.AddToScheme, networking.AddToScheme, monitoring.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	all := []runtime.Object{}
	var wrong []error
	for documents := yaml.NewYAMLReader(bufio.NewReader(r)); ; {
		p, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return all, errors.Join(wrong...)
		}
		if err != nil {
			return nil, err
		}
		if empty(p) {
			continue
		}
		o, _, err := decoder.Decode(p, nil, nil)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%w\n%s", err, p))
			continue
		}
		all = append(all, o)
	}
}

// empty says whether a document has comments alone.
func empty(p []byte) bool {
	for line := range bytes.Lines(p) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

func project(file string) (any, error) {
	options, err := cli.NewProjectOptions([]string{file}, cli.WithName("granary"), cli.WithInterpolation(true))
	if err != nil {
		return nil, err
	}
	return options.LoadProject(context.Background())
}

// selector is a metric that an expression reads, and the labels that it is chosen by.
type selector struct {
	Metric string
	Labels []string
}

// selectors reads expressions and returns what they read.
func selectors(r io.Reader) ([]selector, error) {
	all := []selector{}
	for lines := bufio.NewScanner(r); ; {
		if !lines.Scan() {
			return all, lines.Err()
		}
		e, err := parser.NewParser(parser.Options{}).ParseExpr(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", lines.Text(), err)
		}
		parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
			if v, ok := n.(*parser.VectorSelector); ok {
				s := selector{Metric: v.Name}
				for _, m := range v.LabelMatchers {
					if m.Name != "__name__" {
						s.Labels = append(s.Labels, m.Name)
					}
				}
				all = append(all, s)
			}
			return nil
		})
	}
}
