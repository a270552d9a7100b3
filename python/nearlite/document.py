"""A YAML text as a tree that knows its lines. Pure: no file is read here.

Built from the parser's events and not by PyYAML's composer, which recurses as deep as a text says, knows
nothing of a key that stands there twice, and makes what a plain word means depend on the word ("no" is
false): here every scalar is its text, and who knows the key knows what it is to be. What a text may cost is
bounded: bytes, depth, and nodes as they are after aliases are followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from nearlite.errors import ConfigError

LARGEST: Final = 256 << 10
"""Bytes of a text: databases by the thousand."""
DEEPEST: Final = 16
"""Levels of mappings and lists."""
MOST: Final = 100_000
"""Nodes, each counted as often as aliases repeat it."""
_NOTHING: Final = frozenset({"", "~", "null", "Null", "NULL"})
_MERGE: Final = "<<"
_TEXT_TAG: Final = "tag:yaml.org,2002:str"
_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}", re.ASCII)
_QUOTED: Final = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
_LONGEST_QUOTE: Final = 3
"""Characters: punctuation, and a tab or an escape."""
_TAB: Final = "a tab; YAML is indented with spaces"


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text.

    Attributes:
      line: 1-based.
      text: as it means, without quotes.
      nothing: it stands for no value: empty, ``~`` or ``null`` without quotes.
      size: in nodes.
    """

    line: int
    text: str = field(repr=False)  # it may be a secret
    nothing: bool
    size: int = 1


@dataclass(slots=True)
class Sequence:
    """A list."""

    line: int
    items: list[Node] = field(default_factory=list)
    size: int = 1


@dataclass(slots=True)
class Mapping:
    """Keys and values.

    Attributes:
      line: 1-based.
      entries: by key: the line of the key, and its value.
      size: in nodes.
    """

    line: int
    entries: dict[str, tuple[int, Node]] = field(default_factory=dict)
    size: int = 1


Node: TypeAlias = Scalar | Sequence | Mapping


def shown(key: str) -> str:
    """A key as it is told of: what does not look like one is not shown, for it may be a secret."""
    return key if _KEY.fullmatch(key) else "(not the name of a key)"


def text_of(data: bytes, file: str) -> str:
    """The text of a file.

    Raises:
      ConfigError: it is too large, or not UTF-8.
    """
    if len(data) > LARGEST:
        raise ConfigError(
            file, 1, "", f"the file is larger than {LARGEST:,} bytes, which no configuration is"
        )
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(file, line, "", "the file is not UTF-8 text") from None


def parse(text: str, file: str) -> Mapping:
    """The mapping that a text is.

    Args:
      text: YAML 1.1.
      file: its name, for errors.

    Raises:
      ConfigError: it is not YAML, not one mapping, or beyond a bound.
    """
    if len(text) > LARGEST:
        raise ConfigError(file, 1, "", f"the text is longer than {LARGEST:,} characters")
    return _Building(text, file).whole()


class _Building:
    """Args as `parse`."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._anchors: dict[str, Node] = {}
        self._size = 0

    def _error(self, line: int, why: str, key: str = "") -> ConfigError:
        return ConfigError(self._file, line, key, why)

    def whole(self) -> Mapping:
        root: Node | None = None
        for node in self._documents():
            if root is not None:
                raise self._error(node.line, "a second document begins here; one file is one")
            root = node
        if root is None or (isinstance(root, Scalar) and root.nothing):
            raise self._error(1, "the file is empty; it begins with `dbs:`")
        if not isinstance(root, Mapping):
            raise self._error(root.line, "here stand no keys with values, such as `dbs:`")
        return root

    # ------------------------------------------------------------------ events

    def _events(self) -> Iterator[object]:
        """What the parser finds. Raises ConfigError: it is no YAML."""
        import yaml

        try:
            loader = yaml.SafeLoader(self._text)
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            raise self._error(
                line, f"a character that YAML does not allow: {_code(error)}"
            ) from None
        while True:
            try:
                if not loader.check_event():
                    return
                event = loader.get_event()
            except yaml.MarkedYAMLError as error:
                mark = error.problem_mark or error.context_mark
                line = loader.line if mark is None else mark.line
                raise self._error(line + 1, _why(error.problem or error.context or "")) from None
            except (yaml.YAMLError, ValueError):  # an escape that is no character
                raise self._error(loader.line + 1, "this is not YAML") from None
            yield event

    def _documents(self) -> Iterator[Node]:
        """Their roots. With a stack of its own: a text does not decide how deep this recurses."""
        import yaml

        open_: list[tuple[Sequence | Mapping, str | None]] = []  # and its anchor
        keys: list[tuple[int, str] | None] = []  # of mappings: whose value comes next
        for event in self._events():
            if isinstance(event, (yaml.ScalarEvent, yaml.AliasEvent)):
                node = self._leaf(event)
            elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
                made: Sequence | Mapping
                line = self._begun(event)
                made = (
                    Mapping(line) if isinstance(event, yaml.MappingStartEvent) else Sequence(line)
                )
                if len(open_) >= DEEPEST:
                    raise self._error(line, f"more than {DEEPEST} levels")
                open_.append((made, event.anchor))
                keys.append(None)
                continue
            elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                node, anchor = open_.pop()
                keys.pop()
                if anchor is not None:
                    self._anchors[anchor] = node
            else:
                continue
            if not open_:
                yield node
                continue
            parent = open_[-1][0]
            parent.size += node.size
            if isinstance(parent, Sequence):
                parent.items.append(node)
            elif keys[-1] is None:
                keys[-1] = self._key(node)
            else:
                self._enter(parent, *keys[-1], node)
                keys[-1] = None

    def _begun(self, event: object) -> int:
        """The line of an event that makes a node."""
        line: int = event.start_mark.line + 1  # type: ignore[attr-defined]
        tag: str | None = event.tag  # type: ignore[attr-defined]
        if tag not in (None, _TEXT_TAG):
            raise self._error(line, "tags (!) mean nothing here")
        self._count(1, line)
        return line

    def _count(self, size: int, line: int) -> None:
        self._size += size
        if self._size > MOST:
            raise self._error(line, f"more than {MOST:,} values, aliases followed")

    def _leaf(self, event: object) -> Node:
        import yaml

        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1
            node = self._anchors.get(event.anchor)
            if node is None:  # also inside of what it names
                raise self._error(line, "an alias (*) without its anchor (&) before it")
            self._count(node.size, line)
            return node
        assert isinstance(event, yaml.ScalarEvent)
        line = self._begun(event)
        text: str = event.value
        if "\0" in text or not _encodable(text):
            raise self._error(line, "a character that no name and no value can have")
        plain = event.style is None and event.tag is None
        scalar = Scalar(line, text, plain and text in _NOTHING)
        if event.anchor is not None:
            self._anchors[event.anchor] = scalar
        return scalar

    # ------------------------------------------------------------------ mappings

    def _key(self, node: Node) -> tuple[int, str]:
        if not isinstance(node, Scalar):
            raise self._error(node.line, "a key is a word")
        return node.line, node.text

    def _enter(self, parent: Mapping, line: int, key: str, value: Node) -> None:
        if key == _MERGE:
            self._merge(parent, line, value)
            return
        known = parent.entries.get(key)
        if known is not None and known[0] > 0:
            why = f"stands here twice; the first time in line {known[0]}"
            raise self._error(line, why, shown(key))
        parent.entries[key] = (line, value)

    def _merge(self, parent: Mapping, line: int, value: Node) -> None:
        """``<<: *anchor``: what is not given here, wherever it stands, is as there.

        Lines of such keys are kept below 0, which tells them from those that are given here.
        """
        sources = value.items if isinstance(value, Sequence) else [value]
        for source in sources:
            if not isinstance(source, Mapping):
                raise self._error(line, "<< takes what *NAME stands for, a mapping")
            for key, (at, node) in source.entries.items():
                parent.entries.setdefault(key, (-abs(at), node))


def _code(error: object) -> str:
    character = getattr(error, "character", 0)
    number = character if isinstance(character, int) else ord(character)
    return f"U+{number:04X}"


def _encodable(text: str) -> bool:
    """Whether a file could hold it: half a surrogate pair comes out of an escape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _why(problem: str) -> str:
    """What the parser says, without what it quotes of the text."""
    if "'\\t'" in problem:
        return _TAB
    return f"this is not YAML: {_QUOTED.sub(_short, problem)}"


def _short(quoted: re.Match[str]) -> str:
    return quoted[0] if len(quoted[0]) - 2 <= _LONGEST_QUOTE else "..."
