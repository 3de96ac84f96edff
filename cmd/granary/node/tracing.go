package node

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// tracing sends spans to where the standard variables of OpenTelemetry say (specification,
// "Environment Variable Specification" and "OTLP Exporter Configuration"). Its zero makes none.
type tracing struct{ provider *sdk.TracerProvider }

// endTracing is how long the last spans may take to be sent when the node ends.
const endTracing = 3 * time.Second

// newTracing returns what the variables ask for: spans are sent by OTLP over HTTP, if there is an
// endpoint or OTEL_TRACES_EXPORTER is otlp.
func newTracing(getenv func(string) string) (t tracing, err error) {
	set := func(names ...string) bool {
		for _, name := range names {
			if getenv(name) != "" {
				return true
			}
		}
		return false
	}
	exporter := getenv("OTEL_TRACES_EXPORTER")
	switch {
	case strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true"), exporter == "none":
		return t, nil
	case exporter == "" && !set("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
		return t, nil
	case exporter != "" && exporter != "otlp":
		return t, fmt.Errorf("OTEL_TRACES_EXPORTER: %q is not there: want otlp or none", exporter)
	}
	protocol := getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	if protocol != "" && protocol != "http/protobuf" {
		return t, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL: %q is not there: want http/protobuf, which collectors take at port 4318", protocol)
	}
	ctx := context.Background() // nothing is sent yet
	send, err := otlptracehttp.New(ctx)
	if err != nil {
		return t, fmt.Errorf("tracing: %w", err)
	}
	// What comes later in the list wins: OTEL_SERVICE_NAME over our name.
	about, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "granary"), attribute.String("service.version", Version)),
		resource.WithHost(), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return t, fmt.Errorf("tracing: OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	t.provider = sdk.NewTracerProvider(sdk.WithBatcher(send), sdk.WithResource(about))
	return t, nil
}

// openTracing begins tracing as the process's environment says. A node serves without it, too.
func (n *Node) openTracing() {
	var err error
	if n.tracing, err = newTracing(os.Getenv); err != nil {
		n.log.Error("there will be no traces", "error", err)
	}
	if p := n.tracing.provider; p != nil {
		n.closers = append(n.closers, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), endTracing)
			defer cancel()
			if err := p.Shutdown(ctx); err != nil {
				n.log.Warn("the last spans were not sent", "error", err)
			}
			return nil
		})
	}
}

// tracer returns what makes spans, or nil.
func (t tracing) tracer() trace.Tracer {
	if t.provider == nil {
		return nil
	}
	return t.provider.Tracer("github.com/granary-oci/granary", trace.WithInstrumentationVersion(Version))
}
