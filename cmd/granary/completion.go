package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// completionCmd writes what makes a shell complete command lines. It is made of the command line's
// own description, so that it knows all that there is.
type completionCmd struct {
	Shell string `arg:"" name:"shell" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

func (c *completionCmd) Run(e *env, k *kong.Context) error {
	all := completions(k.Model)
	switch c.Shell {
	case "bash":
		return completeBash(e.stdout, all)
	case "zsh":
		return completeZsh(e.stdout, all)
	}
	return completeFish(e.stdout, all)
}

// completed is a command, or with an empty name what all of them have.
type completed struct {
	name, help string
	words      []completedWord // commands below it, and values of its arguments
	flags      []completedFlag
}

type completedWord struct{ text, help string }

type completedFlag struct {
	name, help string
	value      bool     // it takes one
	values     []string // of which these are all; empty for any, such as files
}

// completions returns what can be completed: first what all commands have, with their names for
// words, then each of them.
func completions(app *kong.Application) []completed {
	all := []completed{{flags: flagsOf(app.Node)}}
	for _, n := range app.Children {
		if n.Hidden {
			continue
		}
		all[0].words = append(all[0].words, completedWord{n.Name, firstSentence(n.Help)})
		c := completed{name: n.Name, help: firstSentence(n.Help), flags: append(flagsOf(n), all[0].flags...)}
		for _, below := range n.Children {
			c.words = append(c.words, completedWord{below.Name, firstSentence(below.Help)})
			c.flags = append(c.flags, flagsOf(below)...)
		}
		for _, p := range n.Positional {
			for _, v := range enumOf(p) {
				c.words = append(c.words, completedWord{v, ""})
			}
		}
		all = append(all, c)
	}
	for i := range all {
		slices.SortFunc(all[i].flags, func(a, b completedFlag) int { return strings.Compare(a.name, b.name) })
		all[i].flags = slices.CompactFunc(all[i].flags, func(a, b completedFlag) bool { return a.name == b.name })
	}
	return all
}

func flagsOf(n *kong.Node) (flags []completedFlag) {
	for _, f := range n.Flags {
		if !f.Hidden {
			flags = append(flags, completedFlag{"--" + f.Name, firstSentence(f.Help), !f.IsBool(), enumOf(f.Value)})
		}
	}
	return flags
}

func enumOf(v *kong.Value) []string {
	if v.Enum == "" {
		return nil
	}
	return v.EnumSlice()
}

// firstSentence is as much of a help as there is room for beside a word.
func firstSentence(help string) string {
	for _, end := range []string{". ", ": ", "; "} {
		help, _, _ = strings.Cut(help, end)
	}
	return strings.TrimSuffix(help, ".")
}

// quoted is a text as all three shells take it for one word.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (c completed) wordTexts() string {
	var texts []string
	for _, w := range c.words {
		texts = append(texts, w.text)
	}
	return strings.Join(texts, " ")
}

func (c completed) flagNames() string {
	var names []string
	for _, f := range c.flags {
		names = append(names, f.name)
	}
	return strings.Join(names, " ")
}

// completeBash writes a function for bash's complete. What a flag takes that has no list of
// values is completed as a file.
func completeBash(w io.Writer, all []completed) error {
	var b strings.Builder
	fmt.Fprint(&b, `# bash completion for granary: source <(granary completion bash)
_granary() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= w flags words
	if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi
	for w in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
`)
	fmt.Fprintf(&b, "\t\tcase $w in %s) command=$w; break;; esac\n\tdone\n\tcase $command in\n", strings.ReplaceAll(all[0].wordTexts(), " ", "|"))
	for _, c := range all[1:] {
		fmt.Fprintf(&b, "\t%s) words=%s flags=%s;;\n", c.name, quoted(c.wordTexts()), quoted(c.flagNames()))
	}
	fmt.Fprintf(&b, "\t*) words=%s flags=%s;;\n\tesac\n\tcase $command,$prev in\n", quoted(all[0].wordTexts()), quoted(all[0].flagNames()))
	for _, c := range all {
		for _, f := range c.flags {
			switch {
			case len(f.values) > 0:
				fmt.Fprintf(&b, "\t%s,%s) COMPREPLY=($(compgen -W %s -- \"$cur\")); return;;\n", c.name, f.name, quoted(strings.Join(f.values, " ")))
			case f.value:
				fmt.Fprintf(&b, "\t%s,%s) compopt -o default 2>/dev/null; return;;\n", c.name, f.name)
			}
		}
	}
	fmt.Fprint(&b, `	esac
	case $cur in
	-*) COMPREPLY=($(compgen -W "$flags" -- "$cur"));;
	*) COMPREPLY=($(compgen -W "$words" -- "$cur")); [ -n "$command" ] && compopt -o default 2>/dev/null;;
	esac
}
complete -F _granary granary
`)
	_, err := io.WriteString(w, b.String())
	return err
}

// completeZsh writes a function for zsh's completion system.
func completeZsh(w io.Writer, all []completed) error {
	var b strings.Builder
	described := func(name string, c completed) {
		fmt.Fprintf(&b, "\t\t%s=(", name)
		if name == "flags" {
			for _, f := range c.flags {
				fmt.Fprint(&b, " ", quoted(f.name+":"+strings.ReplaceAll(f.help, ":", `\:`)))
			}
		} else {
			for _, x := range c.words {
				fmt.Fprint(&b, " ", quoted(x.text+":"+strings.ReplaceAll(x.help, ":", `\:`)))
			}
		}
		fmt.Fprintln(&b, " )")
	}
	fmt.Fprint(&b, `#compdef granary
# zsh completion for granary: granary completion zsh > "${fpath[1]}/_granary"
_granary() {
	local command= w
	local -a flags subwords
	for w in ${words[2,CURRENT-1]}; do
`)
	fmt.Fprintf(&b, "\t\tcase $w in %s) command=$w; break;; esac\n\tdone\n\tcase $command in\n", strings.ReplaceAll(all[0].wordTexts(), " ", "|"))
	for _, c := range append(all[1:len(all):len(all)], all[0]) {
		name := c.name
		if name == "" {
			name = "*"
		}
		fmt.Fprintf(&b, "\t%s)\n", name)
		described("flags", c)
		described("subwords", c)
		fmt.Fprintln(&b, "\t\t;;")
	}
	fmt.Fprint(&b, "\tesac\n\tcase $command,${words[CURRENT-1]} in\n")
	for _, c := range all {
		for _, f := range c.flags {
			switch {
			case len(f.values) > 0:
				fmt.Fprintf(&b, "\t%s,%s) compadd -- %s; return;;\n", c.name, f.name, strings.Join(f.values, " "))
			case f.value:
				fmt.Fprintf(&b, "\t%s,%s) _files; return;;\n", c.name, f.name)
			}
		}
	}
	fmt.Fprint(&b, `	esac
	if [[ ${words[CURRENT]} == -* ]]; then
		_describe -o 'flag' flags
	else
		(( ${#subwords} )) && _describe 'command' subwords
		[[ -n $command ]] && _files
	fi
}
if [[ ${funcstack[1]} == _granary ]]; then _granary "$@"; elif (( $+functions[compdef] )); then compdef _granary granary; fi
`)
	_, err := io.WriteString(w, b.String())
	return err
}

// completeFish writes fish's complete commands.
func completeFish(w io.Writer, all []completed) error {
	var b strings.Builder
	fmt.Fprintf(&b, `# fish completion for granary: granary completion fish | source
function __granary_is
	set -l command ''
	for w in (commandline -opc)[2..]
		if contains -- $w %s
			set command $w
			break
		end
	end
	test "$command" = "$argv[1]"
end
`, all[0].wordTexts())
	for _, c := range all {
		when := `__granary_is "` + c.name + `"`
		for _, x := range c.words {
			fmt.Fprintf(&b, "complete -c granary -f -n %s -a %s -d %s\n", quoted(when), quoted(x.text), fishText(x.help))
		}
		for _, f := range c.flags {
			fmt.Fprintf(&b, "complete -c granary -n %s -l %s -d %s", quoted(when), strings.TrimPrefix(f.name, "--"), fishText(f.help))
			switch {
			case len(f.values) > 0:
				fmt.Fprintf(&b, " -x -a %s", quoted(strings.Join(f.values, " ")))
			case f.value:
				fmt.Fprint(&b, " -r")
			}
			fmt.Fprintln(&b)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// fishText is a text as fish takes it for one word: there a backslash is one in quotes too.
func fishText(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
}
