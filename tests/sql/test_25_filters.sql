begin;
select plan(96);

-- What each operator means: filter, metadata, whether it matches. The fuzz test in Python compares
-- many more; this is the table to read.
select is(
    t.metadata::jsonb @@ rag._compile_filter(t.filter::jsonb),
    t.matches,
    t.filter || ' on ' || t.metadata
)
from (values
    -- equality, by type
    ('{"a": "x"}', '{"a": "x"}', true),
    ('{"a": "x"}', '{"a": "X"}', false),
    ('{"a": "x"}', '{}', false),
    ('{"a": {"$eq": "x"}}', '{"a": "x"}', true),
    ('{"a": 5}', '{"a": "5"}', false),
    ('{"a": "5"}', '{"a": 5}', false),
    ('{"a": 1}', '{"a": 1.0}', true),
    ('{"a": true}', '{"a": true}', true),
    ('{"a": true}', '{"a": "true"}', false),
    ('{"a": 1}', '{"a": true}', false),
    ('{"a": 12345678901234567890}', '{"a": 12345678901234567890}', true),
    ('{"a": 12345678901234567890}', '{"a": 12345678901234567891}', false),
    ('{"a": 0.1}', '{"a": 0.10}', true),
    ('{"a": 1e400}', '{"a": 1e400}', true),
    -- $ne is the exact negation of $eq
    ('{"a": {"$ne": "x"}}', '{"a": "x"}', false),
    ('{"a": {"$ne": "x"}}', '{"a": "y"}', true),
    ('{"a": {"$ne": "x"}}', '{"a": 5}', true),
    ('{"a": {"$ne": "x"}}', '{}', true),
    -- null: no value
    ('{"a": null}', '{"a": null}', true),
    ('{"a": null}', '{}', true),
    ('{"a": null}', '{"a": 0}', false),
    ('{"a": null}', '{"a": []}', false),
    ('{"a": {"$ne": null}}', '{"a": 0}', true),
    ('{"a": {"$ne": null}}', '{"a": null}', false),
    ('{"a": {"$ne": null}}', '{}', false),
    ('{"a": {"$in": ["x", null]}}', '{}', true),
    -- comparisons: numbers with numbers, strings with strings
    ('{"a": {"$gt": 5}}', '{"a": 6}', true),
    ('{"a": {"$gt": 5}}', '{"a": 5}', false),
    ('{"a": {"$gte": 5}}', '{"a": 5}', true),
    ('{"a": {"$lt": 5}}', '{"a": -5.5}', true),
    ('{"a": {"$lte": 5}}', '{"a": 5}', true),
    ('{"a": {"$gt": 5}}', '{"a": "6"}', false),
    ('{"a": {"$gt": 5}}', '{"a": null}', false),
    ('{"a": {"$gt": 5}}', '{}', false),
    ('{"a": {"$lt": 5}}', '{}', false),
    ('{"a": {"$gte": "2024-01-01", "$lt": "2025-01-01"}}', '{"a": "2024-06-30"}', true),
    ('{"a": {"$gte": "2024-01-01", "$lt": "2025-01-01"}}', '{"a": "2025-01-01"}', false),
    ('{"a": {"$gte": "a"}}', '{"a": "B"}', false),
    -- lists
    ('{"a": {"$in": ["x", 5]}}', '{"a": 5}', true),
    ('{"a": {"$in": ["x", 5]}}', '{"a": "5"}', false),
    ('{"a": {"$in": ["x", 5]}}', '{}', false),
    ('{"a": {"$in": []}}', '{"a": 5}', false),
    ('{"a": {"$nin": ["x", 5]}}', '{"a": 5}', false),
    ('{"a": {"$nin": ["x", 5]}}', '{"a": "y"}', true),
    ('{"a": {"$nin": ["x", 5]}}', '{}', true),
    ('{"a": {"$nin": []}}', '{}', true),
    ('{"a": {"$in": [1, 2, 3, 4, 5, 6, 7, "x", true]}}', '{"a": 7.0}', true),
    ('{"a": {"$in": [1, 2, 3, 4, 5, 6, 7, "x", true]}}', '{"a": 8}', false),
    ('{"a": {"$nin": ["a", "b", "c", "d", "e", "f"]}}', '{"a": "e"}', false),
    -- presence
    ('{"a": {"$exists": true}}', '{"a": null}', true),
    ('{"a": {"$exists": true}}', '{}', false),
    ('{"a": {"$exists": false}}', '{}', true),
    ('{"a": {"$exists": false}}', '{"a": []}', false),
    -- fields that hold arrays: any element
    ('{"a": "x"}', '{"a": ["x", "y"]}', true),
    ('{"a": "x"}', '{"a": [["x"]]}', false),
    ('{"a": {"$ne": "x"}}', '{"a": ["x", "y"]}', false),
    ('{"a": {"$in": ["z", "y"]}}', '{"a": ["x", "y"]}', true),
    ('{"a": {"$nin": ["z", "y"]}}', '{"a": ["x", "y"]}', false),
    ('{"a": {"$gt": 5}}', '{"a": ["7", 6, null]}', true),
    ('{"a": {"$gt": 5, "$lt": 3}}', '{"a": [1, 10]}', true),
    -- $contains: an element of an array, or a part of a string
    ('{"a": {"$contains": "x"}}', '{"a": ["x", "y"]}', true),
    ('{"a": {"$contains": "x"}}', '{"a": ["xy"]}', false),
    ('{"a": {"$contains": "x"}}', '{"a": "wxyz"}', true),
    ('{"a": {"$contains": "X"}}', '{"a": "wxyz"}', false),
    ('{"a": {"$contains": ".*"}}', '{"a": "wxyz"}', false),
    ('{"a": {"$contains": "a.\"b\\"}}', '{"a": "xa.\"b\\y"}', true),
    ('{"a": {"$contains": ""}}', '{"a": "x"}', true),
    ('{"a": {"$contains": 5}}', '{"a": [4, 5]}', true),
    ('{"a": {"$contains": 5}}', '{"a": 5}', false),
    ('{"a": {"$contains": "5"}}', '{"a": 5}', false),
    -- nested keys, also through arrays of objects; a dot is a character like others
    ('{"a": {"b": "x"}}', '{"a": {"b": "x", "c": 1}}', true),
    ('{"a": {"b": "x"}}', '{"a": [{"b": "y"}, {"b": "x"}]}', true),
    ('{"a": {"b": {"$ne": "x"}}}', '{"a": [{"b": "y"}, {"b": "x"}]}', false),
    ('{"a": {"b": {"$contains": "x"}}}', '{"a": [{"b": "y"}, {"b": "xx"}]}', true),
    ('{"a": {"b": null}}', '{"a": 5}', true),
    ('{"a.b": 1}', '{"a.b": 1}', true),
    ('{"a.b": 1}', '{"a": {"b": 1}}', false),
    -- connectives, at the top and in a key
    ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}', false),
    ('{"$or": [{"a": 1}, {"b": 2}]}', '{"a": 0, "b": 2}', true),
    ('{"$and": [{"a": 1}, {"$or": [{"b": 2}, {"b": 3}]}]}', '{"a": 1, "b": 3}', true),
    ('{"$not": {"a": 1, "b": 2}}', '{"a": 1}', true),
    ('{"$not": {"a": {"$gt": 1}}}', '{"a": "x"}', true),
    ('{"a": {"$not": {"$gt": 5}}}', '{"a": 6}', false),
    ('{"a": {"$not": {"$gt": 5}}}', '{}', true),
    ('{"a": {"$or": [{"$lt": 5}, {"$gt": 10}]}}', '{"a": 11}', true),
    ('{"$and": [{}]}', '{}', true),
    -- keys that would like to be syntax
    ('{"q\"": 1}', '{"q\"": 1}', true),
    ('{"": 1}', '{"": 1}', true),
    ('{"x$\\\n": "\u0001\ud834\udd1e"}', '{"x$\\\n": "\u0001\ud834\udd1e"}', true)
) as t (filter, metadata, matches);

select is(rag._compile_filter(null)::text, null, 'no filter lets everything pass');
select is(rag._compile_filter('{}')::text, null, 'an empty filter lets everything pass');
select is(
    rag._compile_filter('{"lang": "en", "page": {"$gte": 5}}')::text,
    'exists ($?($."lang" == "en" && $."page" >= 5))',
    'a filter becomes one predicate'
);

select throws_ok(
    $$ select rag._compile_filter('{"page": {"$regex": "x"}}') $$,
    '22023',
    'unknown filter operator "$regex" at page'
);
select throws_ok(
    $$ select rag._compile_filter('{"$or": [{"a": 1}, {"b": {"c": {"$gte": null}}}]}') $$,
    '22023',
    'filter operator "$gte" at $or[1].b.c needs a number or a string'
);
select throws_ok(
    $$ select rag._compile_filter('["a"]') $$,
    '22023',
    'filter is not an object'
);

select is(
    array(
        select p.proname::text
        from pg_proc as p
        where p.pronamespace = 'rag'::regnamespace
            and p.proname in ('_compile_filter', '_compile_condition', '_compile_operator')
            and (p.provolatile <> 'i' or p.proparallel <> 's' or p.prosecdef)
    ),
    '{}',
    'compiling is immutable, parallel safe, and with the rights of the caller'
);

select finish();
rollback;
