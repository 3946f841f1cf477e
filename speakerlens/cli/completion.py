"""The command `speakerlens completion`: a script that completes commands, flags and file names in a shell."""

import io
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import redirect_stdout, suppress

from speakerlens.arguments import ArgumentParser

FLAG = re.compile(r"^ +(?:-\w, )?(--[a-z][a-z-]*)", re.MULTILINE)
SHELLS = ("bash", "zsh", "fish")


def main(
    words: Sequence[str],
    commands: Mapping[str, str],
    with_flags: Collection[str],
    run: Callable[[Sequence[str]], int],
) -> int:
    """Print the script for one shell; return the exit code.

    Args:
        words: those after `completion`.
        commands: what each command does, by its name.
        with_flags: the commands whose flags are completed.
        run: runs the words of a command line.
    """
    parser = ArgumentParser(
        prog="speakerlens completion",
        description="Print a completion script.",
        epilog="For bash, write it to ~/.local/share/bash-completion/completions/speakerlens; for zsh to "
        "_speakerlens in a folder of $fpath; for fish to ~/.config/fish/completions/speakerlens.fish.",
    )
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(words).shell
    flags = {name: _flags(name, run) for name in with_flags}
    sys.stdout.write({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands, flags))
    return 0


def _flags(command: str, run: Callable[[Sequence[str]], int]) -> list[str]:
    """Return the flags in the help of a command; none where what it needs is not installed."""
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        run([command, "--help"])
    return list(dict.fromkeys(FLAG.findall(text.getvalue())))


def _bash(commands: Mapping[str, str], flags: Mapping[str, Sequence[str]]) -> str:
    cases = "\n".join(f"    {name}) words='{' '.join(each)}' ;;" for name, each in flags.items())
    return f"""\
_speakerlens() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words=''
  if [ "$COMP_CWORD" -eq 1 ]; then
    mapfile -t COMPREPLY < <(compgen -W '{" ".join(commands)} --help --version' -- "$word")
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
    completion) mapfile -t COMPREPLY < <(compgen -W '{" ".join(SHELLS)}' -- "$word"); return ;;
  esac
  if [[ $word == -* ]]; then mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word"); fi
}}
complete -o default -F _speakerlens speakerlens
"""


def _zsh(commands: Mapping[str, str], flags: Mapping[str, Sequence[str]]) -> str:
    described = " ".join(_quoted(f"{name}:{about.replace(':', ' -')}") for name, about in commands.items())
    cases = "\n".join(f"    {name}) words_=({' '.join(each)}) ;;" for name, each in flags.items())
    return f"""\
#compdef speakerlens
_speakerlens() {{
  local -a commands words_
  if (( CURRENT == 2 )); then
    commands=({described})
    _describe command commands
    return
  fi
  case $words[2] in
{cases}
    completion) compadd {" ".join(SHELLS)}; return ;;
  esac
  if [[ $PREFIX == -* ]]; then compadd -- $words_; else _files; fi
}}
compdef _speakerlens speakerlens
"""


def _fish(commands: Mapping[str, str], flags: Mapping[str, Sequence[str]]) -> str:
    lines = [
        f"complete -c speakerlens -n __fish_use_subcommand -f -a {name} -d {_quoted(about)}"
        for name, about in commands.items()
    ]
    lines += [
        f"complete -c speakerlens -n '__fish_seen_subcommand_from {name}' -l {flag.removeprefix('--')}"
        for name, each in flags.items()
        for flag in each
    ]
    shells = " ".join(SHELLS)
    lines.append(f"complete -c speakerlens -n '__fish_seen_subcommand_from completion' -f -a '{shells}'")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Quote a text for zsh and fish."""
    return '"' + text.replace('"', "'") + '"'
