"""Metadata filters against a plain evaluation in Python, their errors, their index, their cost."""

from __future__ import annotations

import json
import os
from collections import Counter
from decimal import Decimal
from itertools import pairwise
from operator import ge, gt, le, lt
from random import Random
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterable

Connection = psycopg.Connection[tuple[Any, ...]]

SEED = int(os.environ.get("FILTERS_SEED", "20"))
DOCUMENTS = 400
FILTERS = 1000

# The first ones come most often, so that filters meet documents; the others try the quoting.
KEYS = [
    *("a", "b", "c"),
    *("", "a.b", "x$", "@", "*", "a b", "0", 'q"', "q'", "q\\", '\\"', "\\u0041", "\n\t\x01\x7f"),
    *("é", "e\u0301", "ключ", "𝄞", "\u2028", "null", "--", "');", "$", "${a}"),
]
# JSON texts, because Python has one number only where JSON has several spellings.
NUMBERS = [
    *("0", "-0", "-0.0", "1", "1.0", "1e0", "2", "3", "5", "-1", "-2.5", "0.1", "0.10", "10"),
    *("1e400", "-1e400", "1e-400", "12345678901234567890", "12345678901234567891"),
    *("0.30000000000000004", "0.3", "9007199254740993", "9007199254740992"),
]
STRINGS = [
    *("", "a", "b", "ab", "abc", "A", "B", "5", "1", "1.0", "true", "null", "$a", "$eq", "a.b"),
    *("2024-01-31", "2024-02-01", "2023-12-31T23:59:59Z", ".", ".*", "(?i)a", "***=a", "[", "\\"),
    *('"', '\\"', "'", "a\nb", "\t", "\x01", "\x7f", "é", "e\u0301", "É", "ß", "𝄞", "\uff5e", "a𝄞"),
    *("\u2028", "%", "_", "/", "\\u0061", '" flag "q', "x like_regex "),
]
CONSTANTS = ["null", "true", "false"]
COMPARISONS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$contains")
OPERATORS = (*COMPARISONS, "$and", "$or", "$not")


class Generator:
    """Makes documents and filters, as JSON texts."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def key(self, *, in_filter: bool = False) -> str:
        """A key, mostly one of three."""
        if self.random.random() < 0.85:
            return self.random.choice(KEYS[:3])
        key = self.random.choice(KEYS)
        # A leading $ is an operator's.
        return "x" + key if in_filter and key.startswith("$") else key

    def scalar(self) -> str:
        """A string, number, boolean or null."""
        # Half of all values are of a few, so that they meet.
        kind = self.random.choices(("few", "number", "string", "constant"), (5, 2, 2, 1))[0]
        if kind == "few":
            return self.random.choice(("1", "2", "3", "5", '"a"', '"ab"', '"5"', "null", "true"))
        if kind == "number":
            return self.random.choice(NUMBERS)
        if kind == "string":
            return json.dumps(self.random.choice(STRINGS), ensure_ascii=self.coin())
        return self.random.choice(CONSTANTS)

    def coin(self) -> bool:
        """True or false."""
        return self.random.random() < 0.5

    def document(self, depth: int = 0) -> str:
        """An object of up to four keys."""
        return members(
            (self.key(), self.value(depth + 1)) for _ in range(self.random.randint(0, 4))
        )

    def value(self, depth: int) -> str:
        """A scalar, array or object."""
        kind = self.random.choices(("scalar", "array", "object"), (6, 3, 3))[0]
        if kind == "scalar" or depth > 3:
            return self.scalar()
        if kind == "object":
            return self.document(depth)
        return array(self.value(depth + 1) for _ in range(self.random.randint(0, 3)))

    def condition(self, depth: int, *, in_key: bool) -> str:
        """A filter, or what a key of one has to fulfil."""
        count = self.random.choice((1, 1, 1, 2))
        return members(self.pair(depth, in_key=in_key) for _ in range(count))

    def pair(self, depth: int, *, in_key: bool) -> tuple[str, str]:
        """One key or operator of a condition with its operand."""
        kinds = ("key", "comparison", "$and", "$or", "$not")
        weights = (3, 12, 1, 1, 1) if in_key else (8, 0, 1, 1, 1)
        if depth > 3:
            kinds = ("comparison",) if in_key else ("key",)
            weights = (1,)
        kind = self.random.choices(kinds, weights)[0]
        if kind == "key":
            key = self.key(in_filter=True)
            if self.random.random() < 0.3 or depth > 3:
                return key, self.scalar()
            return key, self.condition(depth + 1, in_key=True)
        if kind == "comparison":
            return self.comparison()
        if kind == "$not":
            return kind, self.condition(depth + 1, in_key=in_key)
        count = self.random.randint(1, 3)
        return kind, array(self.condition(depth + 1, in_key=in_key) for _ in range(count))

    def comparison(self) -> tuple[str, str]:
        """An operator that compares, with its operand."""
        operator = self.random.choice(COMPARISONS)
        if operator in {"$in", "$nin"}:
            count = self.random.choice((0, 1, 2, 3, 6, 20, 60))
            return operator, array(self.scalar() for _ in range(count))
        if operator == "$exists":
            return operator, self.random.choice(("true", "false"))
        operand = self.scalar()
        while operator[:3] in {"$gt", "$lt"} and operand in CONSTANTS:
            operand = self.scalar()
        return operator, operand


def members(pairs: Iterable[tuple[str, str]]) -> str:
    return "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in pairs) + "}"


def array(values: Iterable[str]) -> str:
    return "[" + ", ".join(values) + "]"


def parse(text: str) -> Any:
    """JSON with exact numbers; of several equal keys the last one, as in jsonb."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def matches(
    condition: dict[str, Any], document: dict[str, Any], path: tuple[str, ...] = ()
) -> bool:
    """What docs/filters.md says, as directly as possible."""
    return all(holds(key, operand, document, path) for key, operand in condition.items())


def holds(key: str, operand: Any, document: dict[str, Any], path: tuple[str, ...]) -> bool:
    if key == "$and":
        return all(matches(one, document, path) for one in operand)
    if key == "$or":
        return any(matches(one, document, path) for one in operand)
    if key == "$not":
        return not matches(operand, document, path)
    if key.startswith("$"):
        return compares(key, operand, values_at(document, path))
    if isinstance(operand, dict):
        return matches(operand, document, (*path, key))
    return compares("$eq", operand, values_at(document, (*path, key)))


def values_at(document: dict[str, Any], path: tuple[str, ...]) -> list[Any]:
    """The values under a path of keys; several if there are arrays on the way."""
    values: list[Any] = [document]
    for key in path:
        values = [
            element[key]
            for element in opened(values)
            if isinstance(element, dict) and key in element
        ]
    return values


def opened(values: list[Any]) -> list[Any]:
    """The values, with the elements of arrays in place of the arrays."""
    return [
        element for value in values for element in (value if isinstance(value, list) else [value])
    ]


def compares(operator: str, operand: Any, values: list[Any]) -> bool:
    match operator:
        case "$exists":
            return bool(values) is operand
        case "$eq" | "$in":
            operands = operand if operator == "$in" else [operand]
            return any(equals(operand, values) for operand in operands)
        case "$ne" | "$nin":
            return not compares({"$ne": "$eq", "$nin": "$in"}[operator], operand, values)
        case "$contains":
            return any(contains(value, operand) for value in values)
        case _:
            return any(ordered(operator, value, operand) for value in opened(values))


def contains(value: Any, operand: Any) -> bool:
    if isinstance(value, list):
        return any(equal(element, operand) for element in value)
    return isinstance(value, str) and isinstance(operand, str) and operand in value


def equals(operand: Any, values: list[Any]) -> bool:
    return (operand is None and not values) or any(
        equal(value, operand) for value in opened(values)
    )


def equal(value: Any, operand: Any) -> bool:
    # By type first: in Python true is 1.
    return type(value) is type(operand) and not isinstance(value, dict | list) and value == operand


def ordered(operator: str, value: Any, operand: Any) -> bool:
    compare = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}[operator]
    return type(value) is type(operand) and compare(value, operand)


def store(connection: Connection, documents: list[str]) -> None:
    connection.execute(
        "create table documents (n int primary key, metadata jsonb not null, facets int[] not null"
        " generated always as (rag._facets(1, 1, metadata)) stored)"
    )
    with connection.cursor() as cursor:
        cursor.executemany("insert into documents values (%s, %s)", list(enumerate(documents)))
    connection.execute("create index on documents using gin (metadata jsonb_path_ops)")
    connection.execute("analyze documents")


# What a search looks up in the lexical index; the filter itself comes after it.
NARROWED: LiteralString = """
select d.n
from documents as d
where not exists (
    select from unnest(rag._filter_facets(%s)) as f (any_of) where not d.facets && f.any_of::int[]
)
"""


def check(connection: Connection, filters: list[str], documents: list[str]) -> Counter[str]:
    """Compare every filter with every document, with and without index; count what happened.

    Facets let pass whatever meets the filter, and perhaps more.
    """
    store(connection, documents)
    parsed = [parse(document) for document in documents]
    counts: Counter[str] = Counter()
    for text in filters:
        condition = parse(text)
        expected = {n for n, document in enumerate(parsed) if matches(condition, document)}
        for scan, other in pairwise(("enable_seqscan", "enable_bitmapscan", "enable_seqscan")):
            connection.execute(
                "select set_config(%s, 'on', false), set_config(%s, 'off', false)", [scan, other]
            )
            # Prepared, it would get a generic plan, which compiles the filter for each row.
            rows = connection.execute(
                "select d.n from documents as d where d.metadata @@ rag._compile_filter(%s)",
                [text],
                prepare=False,
            )
            for n in expected ^ {row[0] for row in rows}:
                pytest.fail(
                    f"seed {SEED}, {scan}: {text} on {documents[n]} should be {n in expected}"
                )
        narrowed = {row[0] for row in connection.execute(NARROWED, [text])}
        for n in expected - narrowed:
            pytest.fail(f"seed {SEED}, facets: {text} on {documents[n]} should be True")
        counts["narrowed"] += len(narrowed) < len(documents)
        counts["pairs"] += len(documents)
        if 0 < len(expected) < len(documents):
            counts["some"] += 1
            counts.update(operator for operator in OPERATORS if f'"{operator}":' in text)
    return counts


def test_random_filters_mean_what_python_says(connection: Connection) -> None:
    make = Generator(SEED)
    documents = [make.document() for _ in range(DOCUMENTS)]
    filters = [make.condition(0, in_key=False) for _ in range(FILTERS)]

    counts = check(connection, filters, documents)

    print(f"seed {SEED}: {dict(counts)}")
    assert counts["pairs"] == DOCUMENTS * FILTERS
    # A filter that lets all or nothing pass proves little.
    assert counts["some"] > FILTERS / 2
    assert min(counts[operator] for operator in OPERATORS) >= 15


def test_every_scalar_against_every_scalar(connection: Connection) -> None:
    scalars = [*NUMBERS, *CONSTANTS, *(json.dumps(string) for string in STRINGS)]
    documents = ["{}", '{"k": []}', '{"k": {}}', '{"k": [[1]]}']
    documents += [f'{{"k": {scalar}}}' for scalar in scalars]
    documents += [f'{{"k": [{one}, {other}]}}' for one, other in pairwise(scalars)]
    filters = [
        f'{{"k": {{"{operator}": {scalar}}}}}'
        for scalar in scalars
        for operator in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$contains")
        if scalar not in CONSTANTS or operator in {"$eq", "$ne", "$contains"}
    ]

    check(connection, filters, documents)


def test_every_operator_on_arrays_in_arrays(connection: Connection) -> None:
    def arrays(value: str) -> list[str]:
        return [value, f"[{value}]", f"[[{value}]]", f"[[], 1, {value}]", f"[[[{value}]]]"]

    leaves = [leaf for scalar in ('"xy"', "5", "null", "true") for leaf in arrays(scalar)]
    inner = [f'{{"b": {leaf}}}' for leaf in leaves]
    values = [*leaves, *(value for one in inner for value in arrays(one))]
    values += [f'[{{"b": "xz"}}, {one}]' for one in inner]
    documents = ["{}", *(f'{{"a": {value}}}' for value in values)]
    conditions = [
        *('"xy"', "5", "null", "true", '{"$in": [1, 3, 4, 5, 6, 7]}', '{"$nin": [5, null]}'),
        *('{"$gte": 5}', '{"$lt": "xz"}', '{"$exists": true}', '{"$exists": false}'),
        *('{"$contains": "x"}', '{"$contains": 5}', '{"$contains": null}', '{"$ne": "xy"}'),
    ]
    filters = [f'{{"a": {{"$not": {{"$not": {one}}}}}}}' for one in conditions[4:]]
    filters += [f'{{"a": {one}}}' for one in conditions]
    filters += [f'{{"a": {{"b": {one}}}}}' for one in conditions]

    check(connection, filters, documents)

    # True or false, never unknown: a caller may negate it.
    for text in filters:
        row = connection.execute(
            "select bool_or((d.metadata @@ rag._compile_filter(%s)) is null) from documents as d",
            [text],
            prepare=False,
        ).fetchone()
        assert row == (False,), text


def test_long_lists_are_searched_in_the_right_order(connection: Connection) -> None:
    make = Generator(SEED)
    strings = sorted({"".join(make.random.choices("aAzZ~é\uff5e𝄞", k=3)) for _ in range(400)})
    numbers = [*range(-300, 300, 7), 10**30, -(10**30), *(n / 8 for n in range(300))]
    documents = [json.dumps({"k": value}) for value in (*strings, *numbers, True, None)]
    filters: list[str] = []
    for length in (4, 5, 6, 8, 9, 100, 101, 300):
        some = make.random.sample([*strings, *numbers], length)
        filters += [json.dumps({"k": {operator: some}}) for operator in ("$in", "$nin")]

    assert check(connection, filters, documents)["some"] == len(filters)


TOP = "the top level"
NEEDS = {
    "$eq": ("a string, number, boolean or null", ("[]", "[1]", "{}", '{"a": 1}')),
    "$ne": ("a string, number, boolean or null", ("[1]", '{"a": 1}')),
    "$contains": (
        "a string of at most 1,000 characters, a number, a boolean or null",
        ("[1]", '{"a": 1}', json.dumps("x" * 1001)),
    ),
    **dict.fromkeys(
        ("$gt", "$gte", "$lt", "$lte"),
        ("a number or a string", ("null", "true", "[]", "[1]", "{}", '{"$gt": 1}')),
    ),
    **dict.fromkeys(
        ("$in", "$nin"),
        (
            "an array of strings, numbers, booleans and nulls",
            ("null", "1", '"a"', '{"a": 1}', "[[1]]", "[1, {}]", '["a", []]'),
        ),
    ),
    "$exists": ("true or false", ("null", "1", '"true"', "[]", "{}")),
    **dict.fromkeys(
        ("$and", "$or"),
        ("a non-empty array of objects", ("[]", "{}", "null", "1", '[{"a": 1}, 1]', "[[]]")),
    ),
    "$not": ("an object", ("null", "5", '"a"', "[]", '[{"a": 1}]')),
}
INVALID = [
    ('{"page": {"$regex": "x"}}', 'unknown filter operator "$regex" at page', '"x"'),
    ('{"page": {"$nor": []}}', 'unknown filter operator "$nor" at page', "[]"),
    ('{"a": {"b": {"$like": 1}}}', 'unknown filter operator "$like" at a.b', "1"),
    ('{"a": {"$not": {"$like": 1}}}', 'unknown filter operator "$like" at a.$not', "1"),
    ('{"$or": [{"a": 1}, {"b": {"$x": 1}}]}', 'unknown filter operator "$x" at $or[1].b', "1"),
    ('{"$where": {"a": 1}}', f'unknown filter operator "$where" at {TOP}', '{"a": 1}'),
    ('{"$": 1}', f'unknown filter operator "$" at {TOP}', "1"),
    (
        '{"a": [1, 2]}',
        'filter operator "$eq" at a needs a string, number, boolean or null',
        "[1, 2]",
    ),
    ('{"$gt": 1}', f'filter operator "$gt" at {TOP} stands outside a key', "1"),
    ('{"$not": {"$eq": 1}}', 'filter operator "$eq" at $not stands outside a key', "1"),
    ('{"a": {}}', "empty condition at a", "{}"),
    ('{"a": {"$not": {}}}', "empty condition at a.$not", "{}"),
    ('{"a": {"$or": [{}]}}', "empty condition at a.$or[0]", "{}"),
    ("[]", "filter is not an object", "[]"),
    ("null", "filter is not an object", "null"),
    ('"{}"', "filter is not an object", '"{}"'),
]
INVALID += [
    (
        f'{{"a": {{"b": {{"{operator}": {operand}}}}}}}',
        f'filter operator "{operator}" at a.b needs {needs}',
        operand,
    )
    for operator, (needs, operands) in NEEDS.items()
    for operand in operands
]


def refusal(connection: Connection, text: str) -> psycopg.errors.Diagnostic:
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        connection.execute("select rag._compile_filter(%s)", [text], prepare=False)
    return caught.value.diag


def test_a_bad_filter_is_refused_with_operator_place_value_and_a_way_out(
    connection: Connection,
) -> None:
    for text, message, operand in INVALID:
        diag = refusal(connection, text)
        assert diag.message_primary == message, text
        assert diag.message_detail is not None
        assert diag.message_detail.startswith(f"The value is {operand[:200]}"), text
        assert diag.message_hint, text
        if message.startswith("unknown"):
            for operator in OPERATORS:
                assert operator in diag.message_hint


def test_any_json_is_compiled_or_refused(connection: Connection) -> None:
    make = Generator(SEED)

    def junk(depth: int) -> str:
        kind = make.random.choice(("object", "object", "array", "scalar"))
        if kind == "scalar" or depth > 4:
            return make.scalar()
        count = make.random.randint(0, 3)
        if kind == "array":
            return array(junk(depth + 1) for _ in range(count))
        keys = make.random.choices((*OPERATORS, "$x", *KEYS), k=count)
        return members((key, junk(depth + 1)) for key in keys)

    outcomes = Counter[bool]()
    for _ in range(2000):
        text = junk(0)
        try:
            connection.execute("select rag._compile_filter(%s)", [text], prepare=False)
        except psycopg.errors.InvalidParameterValue:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
    print(f"seed {SEED}: {outcomes[True]} compiled, {outcomes[False]} refused")
    assert min(outcomes[True], outcomes[False]) > 100


def test_size_is_limited(connection: Connection) -> None:
    def nested(levels: int) -> str:
        return '{"a": ' * levels + "1" + "}" * levels

    def negated(levels: int) -> str:
        return '{"$not": ' * levels + '{"a": 1}' + "}" * levels

    def containing(times: int) -> str:
        return json.dumps({"a": {"$or": [{"$contains": n} for n in range(times)]}})

    def keys(count: int) -> str:
        return json.dumps({f"key {n}": n for n in range(count)})

    def listed(count: int) -> str:
        return json.dumps({"a": {"$in": list(range(count))}})

    def empty(count: int) -> str:
        return json.dumps({"$and": [{}] * count})

    for make, most, message in (
        (nested, 32, "filter is nested more than 32 levels deep"),
        (negated, 31, "filter is nested more than 32 levels deep"),
        (containing, 32, 'filter has more than 32 times "$contains"'),
        (keys, 10000, "filter has more than 10,000 values"),
        (listed, 10000, "filter has more than 10,000 values"),
        (empty, 10000, "filter has more than 10,000 values"),
    ):
        connection.execute(
            "select '{}'::jsonb @@ rag._compile_filter(%s)", [make(most)], prepare=False
        )
        diag = refusal(connection, make(most + 1))
        assert diag.message_primary == message
        assert diag.message_hint
        # Neither keys nor values are repeated at length.
        assert len(diag.message_detail or "") < 300


def test_ten_thousand_values_fit_a_small_stack(connection: Connection) -> None:
    connection.execute("set max_stack_depth = '200kB'")
    for condition in (
        {f"key {n}": n for n in range(10000)},
        {"$or": [{f"key {n}": n} for n in range(10000)]},
        {"a": {"$in": [*range(5000), *map(str, range(5000))]}},
    ):
        row = connection.execute(
            'select \'{"a": "4999"}\'::jsonb @@ rag._compile_filter(%s)',
            [json.dumps(condition)],
            prepare=False,
        ).fetchone()
        assert row == ("a" in condition,)


def node_types(plan: dict[str, Any]) -> set[str]:
    return {plan["Node Type"]}.union(*map(node_types, plan.get("Plans", [])))


def test_an_index_serves_equality(connection: Connection) -> None:
    connection.execute(
        """
        create table documents (metadata jsonb not null);
        insert into documents
        select jsonb_build_object(
            'lang', (array['en', 'de', 'es', 'fr'])[1 + n % 4], 'page', n % 1000, 'uri', 'u' || n,
            'shift', -(n % 1000), 'tags', jsonb_build_array('t' || n % 500, 'u' || n % 7),
            'author', jsonb_build_object('name', 'n' || n % 2000), 'draft', n % 900 = 0
        )
        from generate_series(1, 50000) as n;
        alter table documents
        add column facets int[] generated always as (rag._facets(1, 1, metadata)) stored;
        create index on documents using gin (facets);
        analyze documents;
        """
    )
    ids = [f"u{n}" for n in range(0, 50000, 2500)]
    served: list[dict[str, Any]] = [
        {"page": 5},
        {"page": {"$eq": 5}},
        {"shift": -5},
        {"draft": True},
        {"tags": "t5"},
        {"author": {"name": "n5"}},
        {"uri": {"$in": ids[:3]}},
        {"uri": {"$in": ids}},
        {"uri": {"$in": [*ids, 1, None]}, "page": 0},
        {"page": {"$contains": 5}},
        {"$or": [{"page": 5}, {"uri": "u7"}]},
        {"$and": [{"page": 5}, {"$and": [{"lang": "de"}, {"uri": {"$in": ids}}]}]},
        {"page": 5, "lang": {"$ne": "en"}, "shift": {"$gte": -7}},
        {"page": {"$gte": 5}, "uri": "u7"},
        {"$not": {"lang": "en"}, "uri": "u7"},
        {"uri": "u7", "draft": {"$exists": True}, "author": {"name": {"$contains": "7"}}},
    ]
    read: list[dict[str, Any]] = [
        {"page": {"$lt": 1}},
        {"uri": {"$gte": "u9999"}},
        {"draft": {"$ne": False}},
        {"uri": {"$nin": ids}},
        {"uri": {"$contains": "u77"}},
        {"missing": {"$exists": True}},
        {"missing": None},
        {"$not": {"lang": {"$in": ["en", "de", "es", "fr"]}}},
        {"$or": [{"page": 5}, {"page": {"$gt": 998}}]},
    ]
    for condition in (*served, *read):
        text = json.dumps(condition)
        row = connection.execute("select rag._filter_facets(%s)", [text]).fetchone()
        assert row is not None
        assert bool(row[0]) == (condition in served), condition
        if condition in read:
            continue
        narrowed = sql.SQL(" and ").join(
            sql.SQL("facets && {}::int[]").format(sql.Literal(facets)) for facets in row[0]
        )
        row = connection.execute(
            sql.SQL("explain (format json) select from documents where {}").format(narrowed)
        ).fetchone()
        assert row is not None
        assert "Bitmap Index Scan" in node_types(row[0][0]["Plan"]), condition
        counts = connection.execute(
            sql.SQL(
                "select count(*), count(*) filter (where {})"
                " from documents where metadata @@ rag._compile_filter({})"
            ).format(narrowed, sql.Literal(text)),
        ).fetchone()
        assert counts is not None
        assert counts[0] == counts[1], condition


def test_compiling_takes_no_time(connection: Connection) -> None:
    condition = {"lang": "en", "page": {"$gte": 5}, "$or": [{"tag": "a"}, {"tag": {"$in": [1, 2]}}]}
    connection.execute(
        """
        create function measure(filter jsonb) returns interval language plpgsql as $$
        declare
            v_start timestamptz := clock_timestamp();
            v_path jsonpath;
        begin
            for n in 1..20 loop
                v_path := rag._compile_filter(filter);
            end loop;
            return (clock_timestamp() - v_start) / 20;
        end
        $$
        """
    )
    times = [
        connection.execute("select measure(%s)", [json.dumps(condition)]).fetchone()
        for _ in range(100)
    ]
    # The best, because other programs run on the machine, too.
    best = min(row[0].total_seconds() for row in times if row is not None)

    print(f"{best * 1e6:.0f} microseconds")
    assert best < 0.0002
