"""Tasks whose output is text: summaries, briefs, worked answers, lines of code."""

import importlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.world import tasks
from protojax import validate
from protojax.base import Texts

# Of the standard library, what can be imported anywhere without an effect.
MODULES = (
    *("argparse", "array", "ast", "asyncio", "base64", "binascii", "bisect", "bz2"),
    *("calendar", "codecs", "collections", "concurrent.futures", "configparser"),
    *("contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib"),
    *("dis", "email", "email.message", "email.utils", "enum", "fileinput", "filecmp"),
    *("fnmatch", "fractions", "ftplib", "functools", "gettext", "glob", "graphlib"),
    *("gzip", "hashlib", "heapq", "hmac", "html", "html.parser", "http.client"),
    *("http.cookiejar", "http.cookies", "http.server", "imaplib", "importlib"),
    *("inspect", "io", "ipaddress", "itertools", "json", "linecache", "locale"),
    *("logging", "logging.handlers", "lzma", "mailbox", "math", "mimetypes", "mmap"),
    *("multiprocessing", "numbers", "operator", "optparse", "os", "os.path"),
    *("pathlib", "pdb", "pickletools", "platform", "plistlib", "poplib", "posixpath"),
    *("pprint", "profile", "pstats", "pyclbr", "pydoc", "queue", "quopri", "random"),
    *("re", "reprlib", "sched", "secrets", "selectors", "shelve", "shlex", "shutil"),
    *("signal", "smtplib", "socket", "socketserver", "sqlite3", "ssl", "stat"),
    *("statistics", "string", "stringprep", "struct", "subprocess", "symtable", "sys"),
    *("sysconfig", "tarfile", "tempfile", "textwrap", "threading", "time", "timeit"),
    *("tokenize", "trace", "traceback", "types", "typing", "unittest", "unittest.mock"),
    *("urllib.parse", "urllib.request", "urllib.robotparser", "uuid", "warnings"),
    *("wave", "weakref", "webbrowser", "wsgiref.util", "xml.dom.minidom"),
    *("xml.etree.ElementTree", "xml.sax", "xmlrpc.client", "zipfile", "zlib"),
)


def briefs(root: str = "") -> Texts:
    """Utterances of SNIPS and briefs of them, made by a rule.

    The name of the intent, a colon, and the first seven words that are in less than
    1.2 % of the rows or have a digit.

    Args:
        root: as of `tasks.load_task`; "" for the rows that are bundled.
    """
    rows, _, task = tasks.load_task("snips", root=root)
    sources = [" ".join(map(_bare, text.lower().split())) for text in rows.texts]
    split = [source.split() for source in sources]
    count = Counter(word for words in split for word in {*words})
    names = [" ".join(re.findall("[A-Z][a-z]*", n)).lower() for n in task.label_names]
    outputs = []
    for words, label in zip(split, rows.labels, strict=True):
        content = [
            word
            for word in words
            if count[word] < 0.012 * len(split) or any(map(str.isdigit, word))
        ]
        outputs.append(" ".join([names[label], ":", *content[:7]]))
    return Texts(sources, outputs)


def xsum(root: str, *, words: int = 200) -> Texts:
    """News articles and their summaries of one sentence (Narayan et al., 2018).

    Args:
        root: a folder with `xsum/train.jsonl`, columns `document` and `summary`.
        words: of an article that are read.
    """
    rows = list(_rows(root, "xsum/train.jsonl"))
    sources = [" ".join(row["document"].split()[:words]) for row in rows]
    return Texts(sources, [row["summary"] for row in rows])


def instruct(root: str) -> Texts:
    """Instructions and answers: seed tasks, and worked answers to maths problems.

    Args:
        root: a folder with `instruct/seed_tasks.jsonl` (Wang et al., 2022) and
            `gsm8k/train.jsonl` (Cobbe et al., 2021).
    """
    sources, outputs = [], []
    for row in _rows(root, "instruct/seed_tasks.jsonl"):
        (one, *_) = row["instances"]
        sources.append(f"{row['instruction']} {one['input']}".strip())
        outputs.append(one["output"])
    for row in _rows(root, "gsm8k/train.jsonl"):
        sources.append(row["question"])
        answer = re.sub("<<.*?>>", "", row["answer"])
        outputs.append(answer.replace("####", "The answer is"))
    return Texts(sources, outputs)


def code(root: str = "") -> Texts:
    """Docstrings of the standard library, and calls in one line.

    Args:
        root: not read.
    """
    found: dict[str, str] = {}
    for module in map(importlib.import_module, MODULES):
        for call, function in _functions(module):
            text = inspect.getdoc(function) or ""
            source = " ".join(text.split("\n\n")[0].split()[:60])
            try:
                names = inspect.signature(function).parameters
            except (TypeError, ValueError):  # functions in C may have none
                continue
            given = ", ".join(name for name in names if name not in ("self", "cls"))
            if len(source.split()) >= 4 and source not in found:
                found[source] = f"{call}({given})"
    return Texts([*found], [*found.values()])


TEXTS: dict[str, Callable[[str], Texts]] = {
    "briefs": briefs,
    "xsum": xsum,
    "instruct": instruct,
    "code": code,
}


def load_texts(name: str, root: str = "") -> Texts:
    """The rows of a task of `TEXTS`.

    Args:
        name: of the task.
        root: the folder of data sets; "" where the rows come with the package.

    Raises:
        FileNotFoundError: without the task's files.
    """
    validate.one_of(TEXTS, task=name)
    return TEXTS[name](root)


def _bare(word: str) -> str:
    """A word without the punctuation around it."""
    return word.strip(".,;:!?\"'()") or word


def _rows(root: str, name: str) -> Iterator[dict]:
    """The rows of a JSONL file with nested columns."""
    path = Path(root) / name
    if not root or not path.is_file():
        raise FileNotFoundError(f"Expected {name} in the folder --root, found {path}.")
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _functions(module) -> Iterator[tuple[str, Callable]]:
    """The public functions and methods of a module, with how they are called."""
    for name, one in sorted(vars(module).items()):
        home = getattr(one, "__module__", None)
        if name.startswith("_") or home not in (module.__name__, None):
            continue
        if inspect.isclass(one):
            for method, inner in sorted(vars(one).items()):
                if not method.startswith("_") and callable(inner):
                    yield f"{name.lower()}.{method}", inner
        elif callable(one):
            yield f"{module.__name__}.{name}", one
