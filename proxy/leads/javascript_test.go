package leads

import (
	"strings"
	"testing"
)

func TestWhatAModuleOfJavaScriptRequires(t *testing.T) {
	f := files{
		"app/server.js": `#!/usr/bin/env node
const express = require('express'), fs = require("fs");
import core from '@scope/core/lib/index.js'
import './setup';
export { x } from "../shared";
  data: require('./data'),
function late() { return require('./late'); }
const lazy = () => require('./late')
require('./gone'); require('node:path'); require('./dir');
require('/opt/absolute')
`,
		"app/node_modules/express/package.json": `{"name":"express","main":"./lib/main"}`,
		"app/node_modules/express/lib/main.js":  "module.exports = require('body')",
		"app/node_modules/express/index.js":     "",
		"app/node_modules/body/package.json":    `{"main":"gone.js"}`,
		"app/node_modules/body/index.js":        "",
		"node_modules/@scope/core/package.json": `{}`,
		"node_modules/@scope/core/lib/index.js": "",
		"app/setup.mjs":                         "", "app/data.json": "", "app/late.js": "", "app/dir/index.js": "",
		"shared/package.json": `{"main":{"not":"a name"}}`, "shared/index.cjs": "",
		"opt/absolute.js": "",
	}
	finder := New(f.tree(t))
	check(t, "the program", f.from(t, finder, "app/server.js"),
		"app/node_modules/express/package.json", "node_modules/@scope/core/package.json", "node_modules/@scope/core/lib/index.js",
		"app/setup.mjs", "shared/package.json", "app/data.json", "app/dir/index.js", "opt/absolute.js")
	check(t, "a package", f.from(t, finder, "app/node_modules/express/package.json"), "app/node_modules/express/lib/main.js")
	check(t, "its module", f.from(t, finder, "app/node_modules/express/lib/main.js"), "app/node_modules/body/package.json")
	check(t, "a package whose module is not there", f.from(t, finder, "app/node_modules/body/package.json"), "app/node_modules/body/index.js")
	check(t, "one that names none", f.from(t, finder, "shared/package.json"), "shared/index.cjs")
	check(t, "one without any", f.from(t, finder, "node_modules/@scope/core/package.json"))
}

func TestRequiredBy(t *testing.T) {
	for source, want := range map[string]string{
		"const a = require('a'), b = require(\"b/c\")":             "a b/c",
		"import a from 'b'; import \"c\"\nexport * from '@d/e'":    "b c @d/e",
		"  x: require( './y' ),":                                   "./y",
		"function f() { require('a') }\nlet f = x => require('b')": "",
		"return require('a')\nunrequire('b')\n// not from a":       "",
		"require('a" + strings.Repeat("x", 300) + "')":             "",
		strings.Repeat("x", maxLineOfScript) + "require('a')":      "",
	} {
		if got := strings.Join(requiredBy([]byte(source)), " "); got != want {
			t.Errorf("%.40q: %q, want %q", source, got, want)
		}
	}
}
