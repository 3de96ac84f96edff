# The few commands that people use. The README explains them.

.PHONY: build release manifests demo test e2e chaos bench fuzz lint

build: ## the static binary, ./granary
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o granary ./cmd/granary

release: ## static binaries for amd64 and arm64, their SBOMs, the chart and checksums, in ./dist
	./.ci/release dist

manifests: ## deploy/manifests, from the chart; needs helm
	helm version --short # without it there would be empty files
	./deploy/manifests/render granary >deploy/manifests/granary.yaml
	./deploy/manifests/render undo >deploy/manifests/undo.yaml

demo: ## a registry, a node and an image, pulled cold, warm and without the registry
	go run ./cmd/granary demo

test: ## every test; those that need root, FUSE or a program that is missing say why they skip
	go test -race ./...

chaos: ## clients pull for 20 minutes from a cluster that breaks; root, for all of it
	go run ./simtest/chaos

bench: ## all measurements, beside other programs, and what the README quotes of them; an hour, and root
	go run ./simtest/bench -out simtest/bench -readme README.md

fuzz: ## each fuzz target for a while
	./.ci/fuzz 200000x

lint: ## what CI holds the code to
	golangci-lint run
