"""The command `speakerlens completion`: a script that completes commands, flags and file names in a shell."""

import io
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress

from speakerlens.arguments import ArgumentParser
from speakerlens.cli.main import CLIENT, COMPLETION, PARTS
from speakerlens.cli.main import main as speakerlens

FLAG = re.compile(r"^ +(?:-\w, )?(--[a-z][a-z-]*)", re.MULTILINE)
SHELLS = ("bash", "zsh", "fish")


def main(words: Sequence[str]) -> int:
    """Print the script for one shell; return the exit code."""
    parser = ArgumentParser(
        prog="speakerlens completion",
        description=f"{COMPLETION[0].upper()}{COMPLETION[1:]}.",
        epilog="For bash, write it to ~/.local/share/bash-completion/completions/speakerlens; for zsh to "
        "_speakerlens in a folder of $fpath; for fish to ~/.config/fish/completions/speakerlens.fish.",
    )
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(words).shell
    commands = {name: command.about for name, command in CLIENT.items()}
    commands |= {name: command.about for name, command in PARTS.items()} | {"completion": COMPLETION}
    # Help of training and export imports torch, which takes seconds: their options are not completed.
    flags = {name: _flags(name) for name in (*CLIENT, "serve")}
    sys.stdout.write({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands, flags))
    return 0


def _flags(command: str) -> list[str]:
    """Return the flags in the help of a command; none where what it needs is not installed."""
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        speakerlens([command, "--help"])
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
