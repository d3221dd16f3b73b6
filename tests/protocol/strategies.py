"""Any frame, made from its struct: values of the right types, within the bounds that the fields name."""

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from orbital_protocol.frames import Frame


def frames(frame: type[Frame]) -> st.SearchStrategy[Frame]:
    """Any valid frame of this type."""
    made = _struct(inspect.type_info(frame))
    return made.map(lambda value: msgspec.convert(value, frame))


def _struct(info: inspect.Type) -> st.SearchStrategy[object]:
    assert isinstance(info, inspect.StructType)
    fields = {field.encode_name: _field(field) for field in info.fields}
    fixed = {"type": st.just(info.tag)} if info.tag else {}
    return st.fixed_dictionaries({**fields, **fixed})


def _field(field: inspect.Field) -> st.SearchStrategy[object]:
    value = _value(field.type)
    return value if field.default is msgspec.NODEFAULT else st.just(field.default) | value


def _value(info: inspect.Type) -> st.SearchStrategy[object]:  # noqa: PLR0911  one return a type
    match info:
        case inspect.Metadata():
            return _value(info.type)
        case inspect.StructType():
            return _struct(info)
        case inspect.UnionType():
            return st.one_of(*(_value(member) for member in info.types))
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            low, high = info.ge if info.ge is not None else -(2**63), info.le if info.le is not None else 2**64 - 1
            return st.integers(low, high)
        case inspect.BytesType():
            return st.binary(min_size=info.min_length or 0, max_size=info.max_length or 300)
        case inspect.StrType():
            if info.pattern:
                return st.from_regex(info.pattern, fullmatch=True)
            return st.text(min_size=info.min_length or 0, max_size=min(info.max_length or 300, 300))
        case inspect.ListType():
            return st.lists(_value(info.item_type), min_size=info.min_length or 0, max_size=3)
        case _:
            raise TypeError(f"no strategy for {info}")
