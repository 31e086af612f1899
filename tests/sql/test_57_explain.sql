-- rag.explain on corpora small enough to know what has to be told, and that it tells nobody else's.

begin;
select plan(55);

do $$
begin
    delete from rag.models;
    perform rag._create_model('tiny', 3, 'test', is_active => true);
    perform rag.create_tenant('neighbour');
    perform rag.set_tenant('neighbour');
    perform rag.put('A secret apple.', 'secret');
    perform rag.set_tenant('default');
    perform rag.create_collection('other');
    perform rag.put('red apple', 'a', metadata => '{"lang": "en", "page": 1}');
    perform rag.put('green apple, green pear', 'b', metadata => '{"lang": "en", "page": 2}');
    perform rag.put('banana', 'c', metadata => '{"lang": "de"}');
    perform rag.put('apple', 'd', collection => 'other');
    insert into rag.embeddings (
        partition_id, tenant_id, chunk_id, model_id, collection_id, embedding
    )
    select c.partition_id, c.tenant_id, c.chunk_id, m.model_id, c.collection_id, v.vector::halfvec
    from (values ('a', '[1,0,0]'), ('b', '[0,1,0]'), ('c', '[1,1,0]')) as v (uri, vector)
    join rag.documents as d on d.uri = v.uri
    join rag.chunks as c on c.document_id = d.document_id
    cross join rag.models as m
    where m.is_active;
end
$$;

create function pg_temp.chunk(uri text)
    returns bigint
    language sql
as $$
    select c.chunk_id
    from rag.chunks as c
    join rag.documents as d on d.document_id = c.document_id
    where d.uri = chunk.uri
$$;

create function pg_temp.told(
    query text, item text, uri text default null, filter jsonb default null,
    collection text default null, k int default 10, min_score real default null,
    max_per_document int default null, mode text default 'hybrid',
    embedding vector default '[1,0,0]', fusion text default null
)
    returns text
    language sql
as $$
    select string_agg(e.value, '; ')
    from rag.explain(
        told.query, told.k, told.collection, told.filter, told.embedding, told.mode,
        min_score => told.min_score, fusion => told.fusion,
        max_per_document => told.max_per_document, chunk_id => pg_temp.chunk(told.uri)
    ) as e
    where e.item = told.item
$$;

-- What happened ---------------------------------------------------------------------------------

select is(
    pg_temp.told('the apple quince apple -pear', w.item), w.value, format('of %s', w.item)
)
from (
    values
    ('asked', 'hybrid, k 10, of tenant default'),
    ('given', 'the caller''s vector'),
    ('looked up', 'in english'),
    ('appl', 'in 3 of 4 chunks, idf 0.713, adds at most 0.897'),
    ('the', 'left out: a stop word'),
    ('quince', 'left out: in none of the chunks'),
    ('pear', 'left out: excluded, or part of something else'),
    ('phrases, exclusions', '!''pear'''),
    ('semantic plan', 'plan exact'),
    ('chunks: has one of the words', '3'),
    ('chunks: there is', '4'),
    ('dropped by phrases and exclusions', '1; 1'),
    ('standard', 'lexical weight 0.5 (the default), legs of 50: 3 chunks, 1 of them in both'),
    ('returned', '3')
) as w (item, value);
select is(
    (
        select array_agg(distinct e.stage order by e.stage)
        from rag.explain('apple', embedding => '[1,0,0]') as e
    ),
    '{fusion,"lexical leg",passages,"query embedding",search,"semantic leg",words}',
    'each stage is told'
);
select ok(
    (
        select max(e.ms) filter (where e.item = 'all stages')
            >= sum(e.ms) filter (where e.item <> 'all stages')
        from rag.explain('apple') as e
    ),
    'the times of the stages add up to less than all of it'
);
select is(
    pg_temp.told('apple', 'none', embedding => null),
    'not in the cache, and no word has a vector: the lexical leg serves alone',
    'that there was no embedding'
);
select is(
    pg_temp.told('apple', 'word vectors', embedding => null), 'the model has none yet', 'and why'
);
select is(pg_temp.told('apple', 'below min_score', min_score => 1), '2 dropped', 'min_score');
select is(
    pg_temp.told('apple', 'dropped by the filter', filter => '{"lang": "en"}'), '1; 2', 'a filter'
);
select is(
    pg_temp.told('apple', 'in other collections', collection => 'other'), '2; 3', 'a collection'
);
select is(current_setting('rag.trace'), '', 'and nothing is noted afterwards');

-- Why a chunk stands where it stands ------------------------------------------------------------

select is(
    (
        select round(sum((e.detail ->> 'score')::numeric), 9)
        from rag.explain('green apple', chunk_id => pg_temp.chunk('b')) as e
        where e.step = 8 and e.item like 'word %'
    ),
    (select round(s.lexical_score::numeric, 9) from rag.search('green apple', 1) as s),
    'what the words add makes up the lexical score'
);
select is(
    (
        select round(sum((e.detail ->> 'part')::numeric), 9)
        from rag.explain(
            'green apple', embedding => '[0,1,0]', fusion => f.fusion, chunk_id => s.chunk_id
        ) as e
        where e.step = 8 and (e.item like '% leg' or e.item = 'likeness to the best')
    ),
    round(s.score::numeric, 9),
    format('what both legs and likeness add makes up the score, %s, rank %s', f.fusion, s.rank)
)
from unnest('{standard,linear,rrf}'::text[]) as f (fusion)
cross join rag.search('green apple', 4, embedding => '[0,1,0]', fusion => f.fusion) as s;
select is(pg_temp.told('apple', 'rank', 'a'), '1', 'its rank');

-- Why it is absent ------------------------------------------------------------------------------

select is(pg_temp.told(w.query, 'absent', w.uri, w.filter, w.collection, w.k, w.min_score),
    w.reason, format('absent: %s', w.reason))
from (
    values
    ('apple', 'd', null::jsonb, 'default', 10, null::real, 'it is in collection other'),
    ('apple', 'a', '{"lang": "en", "page": {"$gt": 1}}', null, 10, null,
        'the filter is not met: {"page": {"$gt": 1}}'),
    ('"green apple"', 'a', null, null, 10, null,
        'a phrase is missing or an excluded word is there: ''green'' <-> ''appl'''),
    ('apple', 'd', null, null, 1, null, 'place 2 is below the first k'),
    ('apple', 'b', null, null, 10, 1, 'its score -0.2617 is below min_score 1')
) as w (query, uri, filter, collection, k, min_score, reason);
select is(
    pg_temp.told('banana', 'absent', 'd'),
    'no word in common with the query; it has no embedding yet', 'absent: nothing in common'
);

-- A query by words -----------------------------------------------------------------------------

do $$
declare
    v_set int := rag.begin_word_vectors('w', 'tiny', 'first');
begin
    perform rag.put_word_vectors(
        v_set, '{apple,red,green,##ish,b}',
        array['[1,0,0]', '[1,1,0]', '[0,1,0]', '[0,0,1]', '[0,1,1]']::vector[]
    );
    perform rag.activate_word_vectors(v_set);
end
$$;
select is(
    pg_temp.told('redish apple quince', w.item, embedding => null, mode => w.mode), w.value,
    format('by words, %s: %s', w.mode, w.item)
)
from (
    values
    ('hybrid', 'words', 'the sum of the vectors of its words'),
    ('hybrid', 'word apple', 'has a vector'),
    ('hybrid', 'word redish', 'by its pieces red ##ish'),
    ('hybrid', 'word quince', 'unknown, left out'),
    ('semantic', 'word apple', 'has a vector'),
    ('semantic', 'appl', null),
    ('semantic', 'returned', '3')
) as w (mode, item, value);
-- What the passages led it to is what was searched with.
select is(
    (
        select round((e.detail ->> 'similarity')::numeric, 6)
        from rag.explain(
            'apple', 1, mode => m.mode, collection => 'default', chunk_id => pg_temp.chunk('a')
        ) as e
        where e.step = 8 and e.item = 'semantic leg'
    ),
    (
        select round(s.similarity::numeric, 6)
        from rag.search('apple', 10, 'default', mode => m.mode) as s
        where s.uri = 'a'
    ),
    format('the similarity that was found, mode %s', m.mode)
)
from unnest('{hybrid,semantic}'::text[]) as m (mode);

-- Nobody else's ---------------------------------------------------------------------------------

do $$ begin perform set_config('test.secret', (
    select c.chunk_id::text from rag.chunks as c where c.content = 'A secret apple.'
), true); end $$;
select results_eq(
    $$
        select e.item, e.value
        from rag.explain('apple', chunk_id => current_setting('test.secret')::bigint) as e
        where e.step = 8
    $$,
    $$ values ('absent', 'unknown: the tenant has no chunk of this id') $$,
    'a chunk of another tenant is unknown'
);
do $$ begin perform set_config('rag.trace', 'by hand', true); end $$;
select is(
    (select count(*) from rag.search('apple secret', embedding => '[1,0,0]')), 4::bigint,
    'a trace set by hand does no harm'
);
select set_eq(
    $$
        select distinct e.id::bigint
        from string_to_table(current_setting('rag.trace'), E'\n') as l (line)
        cross join jsonb_array_elements_text(
            l.line::jsonb -> 'detail' -> 'chunk_ids'
        ) as e (id)
        where l.line <> 'by hand'
    $$,
    $$
        select c.chunk_id
        from rag.chunks as c
        join rag.tenants as t on t.tenant_id = c.tenant_id and t.name = 'default'
    $$,
    'and tells of the caller''s tenant alone'
);
select throws_ok(
    $$ select rag.explain('apple', 0) $$, '22023', 'invalid k', 'what rag.search refuses'
);

select finish();
rollback;
