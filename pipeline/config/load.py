"""From a YAML file and dotted overrides to a checked `Config`, with errors a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.errors import UserError
from pipeline.config.schema import Config

MAX_CONFIG_BYTES = 1 << 20
Root = TypeVar("Root", bound=BaseModel)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply `key.path=value` overrides, whose values are read as YAML.

    Raises:
        UserError: unreadable file, bad YAML, an unknown key (with the nearest known one), or a value out of range.
    """
    # with every member named: an override that names another has to know which one's fields to drop
    tree = _with_default_kinds(read_yaml(Path(path)), Config)
    # a union's member is chosen first, wherever it stands: choosing it later would drop the fields set before
    for override in sorted(overrides, key=lambda text: not text.partition("=")[0].endswith(".kind")):
        apply_override(tree, override)
    return validate_config(tree, where=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping without tags or aliases.

    Raises:
        UserError: unreadable, larger than `MAX_CONFIG_BYTES`, not plain YAML (see `_parse_plain`), or no mapping.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UserError(path, f"larger than {MAX_CONFIG_BYTES} bytes", "a configuration file")
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(path, f"cannot be read ({reason})", "a YAML file", "recipes are in configs/") from error
    try:
        tree = _parse_plain(text, path)
    except yaml.YAMLError as error:
        raise UserError(path, f"not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict):
        raise UserError(path, f"holds a {type(tree).__name__}", "a mapping of configuration keys")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in a nested dict, in place."""
    dotted, separator, text = override.partition("=")
    keys = dotted.split(".")
    if not separator or not all(keys):
        raise UserError(override, "not an override", "key.path=value", "for example training.epochs=2")
    try:
        value = _parse_plain(text, dotted)
    except yaml.YAMLError as error:
        raise UserError(dotted, f"value {text[:80]!r} is not valid YAML") from error
    if isinstance(value, str):
        value = _number_or_text(value)
    node = tree
    for key in keys[:-1]:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise UserError(dotted, f"{key!r} is a value", "a section")
        node = child
    if isinstance(value, Mapping) is False and keys[-1] == "kind" and node.get("kind") not in (None, value):
        node.clear()  # another member of the union: the old member's fields do not belong to it
    node[keys[-1]] = value


def _parse_plain(text: str, where: object) -> Any:
    """What plain YAML says.

    Raises:
        UserError: an alias, of which a few lines expand to gigabytes, or values nested without end.
        yaml.YAMLError: not YAML, or a tag that would make an object.
    """
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise UserError(where, "a YAML alias", "plain values", "write the value out")
        return yaml.safe_load(text)
    except RecursionError:
        raise UserError(where, "YAML nested too deeply", "plain values") from None


def validate_config(tree: Mapping[str, Any], where: str = "configuration") -> Config:
    """Build the frozen tree of a training run; see `validate_tree`."""
    return validate_tree(Config, tree, where)


def validate_tree(root: type[Root], tree: Mapping[str, Any], where: str) -> Root:
    """Build a frozen tree, turning pydantic's first complaint into one line.

    Args:
        root: the section at its top.
        tree: as YAML gives it.
        where: the file, for the message.

    Raises:
        UserError: an unknown or missing key, or a value out of range.
    """
    tree = _with_default_kinds(tree, root)
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, root, tree, where) from None


def config_fields(
    model: type[BaseModel] = Config, prefix: str = "", inside: Collection[type[BaseModel]] = ()
) -> Iterator[tuple[str, str, str]]:
    """Walk all leaves: dotted key, default as text, description. Lists within lists are not walked again."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        members = _section_types(field.annotation)
        is_named, is_list = _is_mapping(field.annotation), get_origin(field.annotation) is tuple
        if not members or is_named or is_list:
            default = "required" if field.is_required() else str(field.default)
            yield key, default, field.description or ""
        if is_named:
            key = f"{key}.NAME"
        if is_list:
            key = f"{key}.N"
            members = [member for member in members if member not in inside]
            inside = [*inside, *members]
        for member in members:
            kind = member.model_fields.get("kind")
            suffix = f"[{kind.default}]" if kind is not None and len(members) > 1 else ""
            yield from config_fields(member, f"{key}{suffix}.", inside)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested mapping under dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _number_or_text(text: str) -> float | str:
    """YAML 1.1 reads 1e-3 as text; people mean a number."""
    try:
        return float(text)
    except ValueError:
        return text


def _section_types(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _section_types(argument)]


def _is_mapping(annotation: Any) -> bool:
    """Whether a field holds sections under names of the user's choice."""
    return get_origin(annotation) is dict


def _with_default_kinds(tree: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Name the default member of each union that a tree sets fields of without saying which member it means."""
    filled = dict(tree)
    for name, field in model.model_fields.items():
        child = filled.get(name)
        members = _section_types(field.annotation)
        if not isinstance(child, Mapping) or not members:
            continue
        if _is_mapping(field.annotation):
            filled[name] = {key: _section_with_default_kinds(value, members) for key, value in child.items()}
            continue
        if len(members) > 1 and "kind" not in child and isinstance(field.default, BaseModel):
            child = {"kind": field.default.model_dump()["kind"], **child}
        filled[name] = _section_with_default_kinds(child, members)
    return filled


def _section_with_default_kinds(section: Any, members: list[type[BaseModel]]) -> Any:
    if not isinstance(section, Mapping):
        return section
    kind = section.get("kind")
    chosen = [m for m in members if len(members) == 1 or m.model_fields["kind"].default == kind]
    return _with_default_kinds(section, chosen[0]) if chosen else section


def _explain(error: ValidationError, root: type[BaseModel], tree: Mapping[str, Any], where: str) -> UserError:
    first = error.errors()[0]
    path, holder, members = _strip_tags(first["loc"], root)
    dotted = ".".join(path) or where
    if first["type"] == "extra_forbidden":
        known = sorted(holder.model_fields)
        return UserError(dotted, "unknown key", f"one of {', '.join(known)}", _did_you_mean(path[-1], known))
    if first["type"] == "missing":
        # an override that mistypes the name of one section among named ones makes a new, unfinished one
        others = [name for name in _siblings(path, root, tree) if name != path[-2]]
        remedy = _did_you_mean(path[-2], others) if others else ""
        return UserError(dotted, "missing", "a value", remedy or f"set it in {where} or as {dotted}=…")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"].startswith("union_tag"):
        kinds = [member.model_fields["kind"].default for member in members]
        found = first.get("ctx", {}).get("tag", "")
        shown = repr(found) if found else "missing"
        return UserError(f"{dotted}.kind", shown, f"one of {', '.join(kinds)}", _did_you_mean(found, kinds))
    value = first.get("input")
    shown = "" if isinstance(value, Mapping | BaseModel) else f"{value!r}: "
    return UserError(dotted, f"{shown}{message[0].lower()}{message[1:]}")


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def _siblings(path: list[str], root: type[BaseModel], tree: Any) -> list[str]:
    """Names beside the section that misses a key, where sections stand under names of the user's choice."""
    annotation: Any = root
    for name in path[:-2]:
        fields = [m.model_fields[name] for m in _section_types(annotation) if name in m.model_fields]
        annotation = fields[0].annotation if fields else None
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return list(tree) if _is_mapping(annotation) and isinstance(tree, Mapping) else []


def _strip_tags(
    location: tuple[int | str, ...], root: type[BaseModel]
) -> tuple[list[str], type[BaseModel], list[type[BaseModel]]]:
    """Drop the union tags that pydantic puts into locations.

    Also gives the section that holds the last key, and the sections that may stand under it.
    """
    path: list[str] = []
    members: list[type[BaseModel]] = [root]
    holder: type[BaseModel] = root
    is_named = False
    for part in location:
        if is_named:  # a name of the user's choice; its section's type is the mapping's
            path.append(str(part))
            is_named = False
            continue
        tagged = [m for m in members if "kind" in m.model_fields and m.model_fields["kind"].default == part]
        if len(members) > 1 and tagged:
            members = tagged
            holder = tagged[0]
            continue
        if isinstance(part, int) and members:  # an element of a list of sections
            path.append(str(part))
            continue
        if part == "[key]" or not members:
            # pydantic's mark of a mapping's key; inside a leaf, an element's number or the tag of a plain union
            path += [str(part)] if isinstance(part, int) else []
            continue
        holder = members[0]
        path.append(str(part))
        field = holder.model_fields.get(str(part))
        members = _section_types(field.annotation) if field else []
        is_named = field is not None and _is_mapping(field.annotation)
    return path, holder, members
