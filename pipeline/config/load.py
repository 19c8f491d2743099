"""From a YAML file and dotted overrides to a checked `Config`, with errors a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.errors import UserError
from pipeline.config.schema import Config

MAX_CONFIG_BYTES = 1 << 20


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

    Aliases are refused because a few lines of them expand to gigabytes.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UserError(path, f"larger than {MAX_CONFIG_BYTES} bytes", "a configuration file")
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(path, f"cannot be read ({reason})", "a YAML file", "recipes are in configs/") from error
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise UserError(path, "a YAML alias", "plain values", "write the value out")
        tree = yaml.safe_load(text)
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
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(dotted, f"value {text!r} is not valid YAML") from error
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


def validate_config(tree: Mapping[str, Any], where: str = "configuration") -> Config:
    """Build the frozen tree, turning pydantic's first complaint into one line."""
    tree = _with_default_kinds(tree, Config)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, tree, where) from None


def config_fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Walk all leaves: dotted key, default as text, description."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        members = _section_types(field.annotation)
        if not members:
            default = "required" if field.is_required() else str(field.default)
            yield key, default, field.description or ""
        for member in members:
            kind = member.model_fields.get("kind")
            suffix = f"[{kind.default}]" if kind is not None and len(members) > 1 else ""
            yield from config_fields(member, f"{key}{suffix}.")


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


def _with_default_kinds(tree: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Name the default member of each union that a tree sets fields of without saying which member it means."""
    filled = dict(tree)
    for name, field in model.model_fields.items():
        child = filled.get(name)
        members = _section_types(field.annotation)
        if not isinstance(child, Mapping) or not members:
            continue
        if len(members) > 1 and "kind" not in child and isinstance(field.default, BaseModel):
            child = {"kind": field.default.model_dump()["kind"], **child}
        chosen = [m for m in members if len(members) == 1 or m.model_fields["kind"].default == child.get("kind")]
        filled[name] = _with_default_kinds(child, chosen[0]) if chosen else child
    return filled


def _explain(error: ValidationError, tree: Mapping[str, Any], where: str) -> UserError:
    first = error.errors()[0]
    path, model = _strip_tags(first["loc"], tree)
    dotted = ".".join(path) or where
    if first["type"] == "extra_forbidden":
        known = sorted(model.model_fields) if model else []
        close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        remedy = f"did you mean {close[0]!r}?" if close else ""
        return UserError(dotted, "unknown key", f"one of {', '.join(known)}", remedy)
    if first["type"] == "missing":
        return UserError(dotted, "missing", "a value", f"set it in {where} or as {dotted}=…")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"].startswith("union_tag"):
        return UserError(f"{dotted}.kind", message)
    value = first.get("input")
    shown = "" if isinstance(value, Mapping | BaseModel) else f"{value!r}: "
    return UserError(dotted, f"{shown}{message[0].lower()}{message[1:]}")


def _strip_tags(location: tuple[int | str, ...], tree: Any) -> tuple[list[str], type[BaseModel] | None]:
    """Drop the union tags that pydantic puts into locations; also give the section that holds the last key."""
    path: list[str] = []
    members: list[type[BaseModel]] = [Config]
    holder: type[BaseModel] | None = Config
    for part in location:
        tagged = [m for m in members if "kind" in m.model_fields and m.model_fields["kind"].default == part]
        if len(members) > 1 and tagged:
            members = tagged
            holder = tagged[0]
            continue
        holder = members[0] if members else None
        path.append(str(part))
        field = holder.model_fields.get(str(part)) if holder else None
        members = _section_types(field.annotation) if field else []
    return path, holder
