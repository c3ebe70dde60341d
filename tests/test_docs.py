"""Every command in the documentation is accepted by its parser, and every file that it names exists."""

import contextlib
import io
import re
import shlex
import warnings
from pathlib import Path

import pytest

from alexnet_jax import cli
from alexnet_jax import config as config_lib
from alexnet_jax.errors import UsageError

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "RESULTS.md", ROOT / "benchmarks/RESULTS.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
PLACEHOLDER = re.compile(r"=(SEED|N|K|I)$")  # for a number
MAIN_FLAGS = set(re.findall(r'flags\.DEFINE_\w+\("(\w+)"', (ROOT / "main.py").read_text()))


def blocks(text):
    """The lines of indented and fenced code, but for Python's; a line that ends in a backslash with its next."""
    fenced, found = None, []
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            fenced = None if fenced is not None else line.strip().removeprefix("```")
        elif (fenced is not None and fenced != "python") or (fenced is None and line.startswith("    ")):
            found.append(line.strip())
        else:
            found.append("")
    return re.sub(r"\\\n", " ", "\n".join(found)).split("\n")


def commands(text):
    """The commands of a page: in its blocks of code, and between backticks."""
    lines = blocks(text)
    lines += [" ".join(inline.split()) for inline in re.findall(r"`((?:python|alexnet-jax) [^`]+)`", text)]
    for line in lines:
        for part in re.split(r"&&|\||--command=\"", line):
            part = re.sub(r"^(srun |\w+=\S+ )+", "", part.strip()).rstrip('"')
            if part.startswith(("python ", "alexnet-jax ")):
                yield part


def wrong_config(arguments):
    """What is wrong with --config and --config.FIELD, or None."""
    arguments = [
        PLACEHOLDER.sub("=1", a).replace("=DTYPE", "=bfloat16").replace("--config=FILE", BASE) for a in arguments
    ]
    if not any(argument.startswith("--config=") for argument in arguments):
        arguments = [BASE, *arguments]
    try:
        with warnings.catch_warnings(action="ignore"):  # ml_collections loads config files in an old way
            config_lib.check(config_lib.from_flags(arguments))
    except UsageError as error:
        return str(error)
    except Exception as error:  # an unknown variant of a config file
        return repr(error)
    return None


BASE = f"--config={ROOT}/configs/quickstart.py"


def wrong_main(arguments):
    """What is wrong with the arguments of main.py, or None."""
    of_config = [a for a in arguments if a.startswith("--config")]
    others = {a.removeprefix("--").partition("=")[0] for a in arguments if a not in of_config}
    if unknown := others - MAIN_FLAGS:
        return f"main.py has no flag {sorted(unknown)}"
    return wrong_config(of_config)


def wrong_command(arguments):
    """What is wrong with the arguments of python -m alexnet_jax, or None."""
    if not arguments:
        return None
    if len(arguments) == 1:  # named in a sentence
        known = next(a.choices for a in cli.parser()._actions if a.choices)
        return None if arguments[0] in known or arguments[0] == "COMMAND" else f"no command {arguments[0]}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options, rest = cli.parser().parse_known_args([PLACEHOLDER.sub("=1", a) for a in arguments])
    except SystemExit:
        return said.getvalue()
    if options.command in ("doctor", "experiment"):
        of_config = [f"--config={options.config}"] if options.command == "doctor" else []
        return wrong_config([*of_config, *rest])
    return f"unknown arguments {rest}" if rest else None


def wrong(command):
    """What is wrong with a command, or None."""
    words = shlex.split(command, comments=True)
    words = words[1:] if words[0] == "python" else ["-m", "alexnet_jax", *words[1:]]
    match words:
        case ["main.py", *arguments]:
            return wrong_main(arguments)
        case ["-m", "alexnet_jax", *arguments]:
            return wrong_command(arguments)
        case ["-m", "pytest", *_]:
            return None
        case [script, *arguments] if (ROOT / script).is_file():
            text = (ROOT / script).read_text()
            flags = [a.partition("=")[0] for a in arguments if a.startswith("--")]
            of_config = [a for a in arguments if a.startswith("--config") and "from_flags" in text]
            missing = [flag for flag in flags if f'"{flag}"' not in text and not flag.startswith("--config")]
            return f"{script} has no flag {missing}" if missing else of_config and wrong_config(of_config)
    return "there is no such program"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_accepted(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    faults = {command: wrong(command) for command in commands(page.read_text())}
    assert {command: fault for command, fault in faults.items() if fault} == {}


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "docs"], ids=lambda page: page.name)
def test_each_page_of_docs_starts_with_a_command(page):
    if page.name not in ("fidelity.md", "imagenet.md"):  # tables of differences and of costs
        assert any(line.startswith("    ") for line in page.read_text().split("\n")[:6])


@pytest.mark.parametrize(
    "command",
    [
        "python main.py --config=configs/alexnett.py --workdir=/ckpt",
        "python main.py --config=configs/alexnet.py:sildes --workdir=/ckpt",
        "python main.py --config=configs/alexnet.py --workdirs=/ckpt",
        "python main.py --config=configs/alexnet.py --config.views=3",
        "python -m alexnet_jax evaluate --workdir=/ckpt --checkpoint=first",
        "python -m alexnet_jax evaluate --workdir=/ckpt --view=3",
        "python -m alexnet_jax doctor --config=configs/alexnet.py --config.vews=1",
        "python -m alexnet_jax retrain",
        "alexnet-jax experiment figure2 --workdir=/ckpt",
        "python benchmarks/train_step.py --size=3",
        "python benchmarks/steps.py",
    ],
)
def test_wrong_commands_are_found(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert wrong(command)


def test_commands_are_found_in_blocks_and_sentences():
    page = "Run `python main.py\n--config=a.py`:\n\n    cat x | python -m alexnet_jax predict - \\\n      --json\n\n"
    page += "```python\npython b\n```\n"
    found = [" ".join(command.split()) for command in commands(page)]
    assert found == ["python -m alexnet_jax predict - --json", "python main.py --config=a.py"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page):
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    paths = re.findall(r"`((?:alexnet_jax|configs|tests|docs|benchmarks)/[\w./-]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_readme_is_short_and_lists_each_folder_once():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    folders = [path.name for path in (ROOT / "alexnet_jax").iterdir() if path.is_dir() and path.name[0] != "_"]
    assert {name: text.count(f"| `alexnet_jax/{name}/` |") for name in folders} == dict.fromkeys(folders, 1)
