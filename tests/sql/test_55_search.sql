-- rag.search on corpora small enough to work out the answer by hand. The scores of the lexical leg
-- have tests of their own; here its order is clear from the texts. Plans and locks are in
-- tests/test_search_plans.py.

begin;
select plan(165);

-- Three dimensions, so that vectors can be written by hand.
do $$
begin
    delete from rag.models;
    perform rag._create_model('tiny', 3, 'test', is_active => true);
    perform rag._create_model('other', 4, 'test');
    perform rag.set_tenant('default');
end
$$;

-- Put a document and give all its chunks that vector.
create function pg_temp.put(uri text, content text, vector vector default null)
    returns void
    language plpgsql
as $$
declare
    v_document bigint := rag.put(put.content, put.uri);
begin
    insert into rag.embeddings (
        partition_id, tenant_id, chunk_id, model_id, collection_id, embedding
    )
    select c.partition_id, c.tenant_id, c.chunk_id, m.model_id, c.collection_id, put.vector::halfvec
    from rag.chunks as c
    cross join rag.models as m
    where c.document_id = v_document and m.is_active and put.vector is not null
    on conflict (tenant_id, chunk_id, model_id, partition_id)
    do update set embedding = excluded.embedding;
end
$$;

-- The uris of the words' answer, best first.
create function pg_temp.found(query text)
    returns text[]
    language sql
as $$
    select coalesce(array_agg(s.uri order by s.rank), '{}')
    from rag.search(found.query, mode => 'lexical') as s
$$;

-- Fusion --------------------------------------------------------------------------------------

do $$
begin
    perform pg_temp.put('a', 'apple apple apple', '[0,0,1]');
    perform pg_temp.put('b', 'apple banana', '[1,1,0]');
    perform pg_temp.put('c', 'cherry', '[1,0,0]');
end
$$;

-- By words a, b; by meaning c, b, a. A place counts 61 / (60 + place), in each leg the half.
create function pg_temp.fused(
    mode text default 'hybrid',
    lexical_weight real default null,
    k int default 10,
    min_score real default null,
    embedding vector default '[1,0,0]'
)
    returns table (
        rank int, uri text, score numeric, lexical_rank int, semantic_rank int, similarity numeric
    )
    language sql
as $$
    select
        s.rank, s.uri, round(s.score::numeric, 6), s.lexical_rank, s.semantic_rank,
        round(s.similarity::numeric, 3)
    from rag.search(
        'apple', fused.k, embedding => fused.embedding, mode => fused.mode,
        lexical_weight => fused.lexical_weight, min_score => fused.min_score, fusion => 'rrf'
    ) as s
$$;

select results_eq(
    'select * from pg_temp.fused()',
    $$
        values
        (1, 'a', round(0.5 * 61 / 61 + 0.5 * 61 / 63, 6), 1, 3, 0.000),
        (2, 'b', round(0.5 * 61 / 62 + 0.5 * 61 / 62, 6), 2, 2, 0.707),
        (3, 'c', round(0.5 * 61 / 61 + 0.5 * 61 / (60 + 31), 6), null, 1, 1.000)
    $$,
    'hybrid adds up the reciprocal ranks of both legs, 31 for what one does not list'
);
select results_eq(
    'select * from pg_temp.fused(''lexical'')',
    $$
        values
        (1, 'a', 1.000000, 1, null::int, null::numeric),
        (2, 'b', round(61 / 62.0, 6), 2, null, null)
    $$,
    'lexical has the words alone, first place counts 1'
);
select results_eq(
    'select * from pg_temp.fused(''semantic'')',
    $$
        values
        (1, 'c', 1.000000, null::int, 1, 1.000),
        (2, 'b', round(61 / 62.0, 6), null, 2, 0.707),
        (3, 'a', round(61 / 63.0, 6), null, 3, 0.000)
    $$,
    'semantic has the meaning alone'
);
select results_eq(
    'select * from pg_temp.fused(lexical_weight => 0.25)',
    $$
        values
        (1, 'b', round(0.25 * 61 / 62 + 0.75 * 61 / 62, 6), 2, 2, 0.707),
        (2, 'a', round(0.25 * 61 / 61 + 0.75 * 61 / 63, 6), 1, 3, 0.000),
        (3, 'c', round(0.25 * 61 / (60 + 31) + 0.75 * 61 / 61, 6), null, 1, 1.000)
    $$,
    'the weight moves the score from one leg to the other'
);
select results_eq(
    'select rank, uri, score from pg_temp.fused(lexical_weight => 1)',
    $$
        values
        (1, 'a', 1.000000), (2, 'b', round(61 / 62.0, 6)), (3, 'c', round(61 / 91.0, 6))
    $$,
    'with all of it on the words, meaning only fills up'
);
select results_eq(
    'select rank, uri, score from pg_temp.fused(lexical_weight => 0)',
    $$
        values
        (1, 'c', 1.000000), (2, 'b', round(61 / 62.0, 6)), (3, 'a', round(61 / 63.0, 6))
    $$,
    'with none of it, words only fill up'
);
select results_eq(
    'select * from pg_temp.fused(embedding => null)',
    'select * from pg_temp.fused(''lexical'')',
    'without an embedding the words serve alone'
);
select results_eq(
    'select * from pg_temp.fused(embedding => null, lexical_weight => 0.1)',
    'select * from pg_temp.fused(''lexical'')',
    'and keep their scores, whatever their weight'
);
select results_eq(
    'select * from pg_temp.fused(''lexical'', lexical_weight => 0.1)',
    'select * from pg_temp.fused(''lexical'')',
    'one leg has all the weight'
);
select results_eq(
    $$
        select s.uri, round(s.score::numeric, 6), s.semantic_rank
        from rag.search('nowhere', embedding => '[1,0,0]', fusion => 'rrf') as s
    $$,
    $$
        values
        ('c', 0.500000, 1), ('b', round(0.5 * 61 / 62, 6), 2), ('a', round(0.5 * 61 / 63, 6), 3)
    $$,
    'a leg that lists nothing adds nothing'
);
select results_eq(
    'select rank, uri from pg_temp.fused(k => 2)', $$ values (1, 'a'), (2, 'b') $$,
    'k is the number of passages'
);
select results_eq(
    'select rank, uri from pg_temp.fused(min_score => 0.9)', $$ values (1, 'a'), (2, 'b') $$,
    'min_score leaves out what has less'
);
select results_eq(
    'select rank, uri from pg_temp.fused(''lexical'', min_score => 1)',
    $$ values (1, 'a') $$,
    'and takes what has just as much'
);
select is_empty('select from pg_temp.fused(min_score => 2)', 'min_score may leave nothing');
select results_eq(
    'select * from pg_temp.fused(embedding => ''[1e30,0,0]'')', 'select * from pg_temp.fused()',
    'the length of the query''s vector does not matter'
);
select results_eq(
    'select * from pg_temp.fused(embedding => ''[1e-30,0,0]'')', 'select * from pg_temp.fused()',
    'however short it is'
);

-- What an answer tells ------------------------------------------------------------------------

select results_eq(
    'select distinct query_embedding from rag.search(''apple'', embedding => ''[1,0,0]'')',
    array['given'], 'an answer says that the embedding was given'
);
select results_eq(
    'select distinct query_embedding from rag.search(''apple'')',
    array['none'], 'or that there was none'
);
select results_eq(
    $$
        select distinct query_embedding
        from rag.search('apple', embedding => '[1,0,0]', mode => 'lexical')
    $$,
    array['none'], 'or that it was not used'
);
do $$
begin
    perform rag.put(
        E'# Returns\n\nSend it back.\n\n# Durian\n\nIt smells.', 'd', 'Fruit', '{"lang": "en"}'
    );
end
$$;
select results_eq(
    $$
        select
            s.document_id = d.document_id,
            s.uri,
            s.title,
            s.metadata,
            s.content = substr(d.content, s.start_offset + 1, s.end_offset - s.start_offset),
            c.ordinal = s.ordinal and c.heading_path = s.heading_path
        from rag.search('durian') as s
        join rag.documents as d on d.document_id = s.document_id
        join rag.chunks as c on c.chunk_id = s.chunk_id
    $$,
    $$ values (true, 'd', 'Fruit', '{"lang": "en"}'::jsonb, true, true) $$,
    'it has the passage, its place and its document'
);
select results_eq(
    $$
        select uri, lexical_rank, semantic_rank
        from rag.search('durian', 1, embedding => '[1,0,0]')
    $$,
    $$ values ('d', 1, null::int) $$,
    'a passage that is not embedded yet'
);
select results_eq(
    $$
        select lexical_rank, semantic_rank, similarity
        from rag.search('durian', embedding => '[1,0,0]')
        where uri = 'd'
    $$,
    $$ values (1, null::int, null::double precision) $$,
    'is found by its words all the same'
);

-- Ties ----------------------------------------------------------------------------------------

do $$
begin
    for i in 1..7 loop
        perform pg_temp.put('tie ' || i, 'elderberry', '[0,1,0]');
    end loop;
    -- Their rows now lie in another order than that in which they were made.
    update rag.embeddings as e
    set embedding = e.embedding
    from rag.chunks as c
    where c.chunk_id = e.chunk_id and c.content = 'elderberry' and c.chunk_id % 2 = 0;
end
$$;
select results_eq(
    $$ select uri from rag.search('elderberry', 7, embedding => '[0,1,0]', mode => 'semantic') $$,
    array['tie 1', 'tie 2', 'tie 3', 'tie 4', 'tie 5', 'tie 6', 'tie 7'],
    'equal meaning comes in the order of the passages'
);
select results_eq(
    $$ select uri from rag.search('elderberry', 3, mode => 'lexical') $$,
    array['tie 1', 'tie 2', 'tie 3'], 'equal words too, also where they are cut off'
);
select results_eq(
    $$ select uri from rag.search('elderberry', 3, embedding => '[0,1,0]') $$,
    array['tie 1', 'tie 2', 'tie 3'], 'and both together'
);

-- How many ------------------------------------------------------------------------------------

do $$
begin
    perform rag.create_tenant('plenty');
    perform rag.set_tenant('plenty');
    for i in 1..230 loop
        perform pg_temp.put('n ' || i, 'number ' || i, format('[%s,%s,1]', sin(i), cos(i))::vector);
    end loop;
end
$$;
select is(
    (
        select count(*)::int
        from rag.search('nothing', w.k, embedding => '[1,0,0]', mode => w.mode)
    ),
    least(w.k, 230),
    format('%s of 230 passages, mode %s', w.k, w.mode)
)
from (
    select
        k.k,
        m.mode
    from unnest(array[1, 10, 99, 230, 231, 1000]) as k (k)
    cross join unnest(array['semantic', 'hybrid']) as m (mode)
    where m.mode = 'semantic' or k.k <= 230
) as w;
select results_eq(
    $$
        select s.chunk_id
        from rag.search('', 100, embedding => '[1,2,3]', mode => 'semantic') as s
        order by s.rank
    $$,
    $$
        select e.chunk_id
        from rag.embeddings as e
        join rag.tenants as t on t.tenant_id = e.tenant_id
        where t.name = 'plenty'
        order by e.embedding <=> '[1,2,3]', e.chunk_id
        limit 100
    $$,
    'they are the nearest, and in order'
);
do $$ begin perform rag.create_tenant('nothing'); perform rag.set_tenant('nothing'); end $$;
select is_empty(
    $$ select from rag.search('apple', embedding => '[1,0,0]') $$, 'who has nothing finds nothing'
);

-- Collections and filters ---------------------------------------------------------------------

do $$
begin
    perform rag.create_tenant('shop');
    perform rag.set_tenant('shop');
    perform rag.create_collection('notes');
    perform rag.put('apple', 'en 1', metadata => '{"lang": "en", "page": 1}');
    perform rag.put('apple', 'en 2', metadata => '{"lang": "en", "page": 2}');
    perform rag.put('apple', 'de 1', metadata => '{"lang": "de", "page": 1}');
    perform rag.put('apple', 'note', collection => 'notes');
    insert into rag.embeddings (
        partition_id, tenant_id, chunk_id, model_id, collection_id, embedding
    )
    select c.partition_id, c.tenant_id, c.chunk_id, m.model_id, c.collection_id, '[1,0,0]'
    from rag.chunks as c
    join rag.tenants as t on t.tenant_id = c.tenant_id and t.name = 'shop'
    cross join rag.models as m
    where m.is_active;
end
$$;
select results_eq(
    format(
        $$
            select uri || ' ' || collection from (
                select s.uri, n.name as collection
                from rag.search('apple', collection => 'notes', embedding => %L, mode => %L) as s
                join rag.documents as d on d.document_id = s.document_id
                join rag.collections as n on n.collection_id = d.collection_id
            ) as found
        $$,
        m.vector, m.mode
    ),
    array['note notes'], format('a collection alone, mode %s', m.mode)
)
from (
    values ('lexical', null), ('semantic', '[1,0,0]'), ('hybrid', '[1,0,0]')
) as m (mode, vector);
select results_eq(
    format(
        $$
            select uri
            from rag.search('apple', filter => '{"lang": "en"}', embedding => %L, mode => %L)
            order by uri
        $$,
        m.vector, m.mode
    ),
    array['en 1', 'en 2'], format('a filter, mode %s', m.mode)
)
from (
    values ('lexical', null), ('semantic', '[1,0,0]'), ('hybrid', '[1,0,0]')
) as m (mode, vector);
select results_eq(
    $$
        select uri
        from rag.search(
            'apple', collection => 'default', filter => '{"lang": "en", "page": {"$gte": 2}}',
            embedding => '[0,1,0]'
        )
    $$,
    array['en 2'], 'both together'
);
select is_empty(
    $$ select from rag.search('apple', filter => '{"lang": "fr"}', embedding => '[1,0,0]') $$,
    'a filter that nothing passes'
);
select throws_ok(
    $$ select from rag.search('apple', collection => 'nowhere') $$,
    'RG003', 'collection "nowhere" does not exist', 'a collection must be there'
);

-- Words ---------------------------------------------------------------------------------------

do $$
begin
    perform rag.create_tenant('words');
    perform rag.set_tenant('words');
    perform rag.put('the quick brown fox', 'brown');
    perform rag.put('the quick fox', 'quick');
    perform rag.put('an e-mail on state-of-the-art anti-aliasing', 'mail');
    perform rag.put('it''s about the error ERR_404 in node.js, v1.2.3', 'identifiers');
end
$$;
select is(pg_temp.found(w.query), w.uris, w.sentence)
from (
    values
    ('brown elephants', '{brown}'::text[], 'one word of a question is enough'),
    ('FOXES', '{quick,brown}', 'a word is found in each of its forms, the shorter text first'),
    ('"quick fox"', '{quick}', 'words in quotes stand side by side'),
    ('"quick fox" brown', '{quick}', 'also with others'),
    ('"quick brown" "brown fox"', '{brown}', 'all phrases have to be there'),
    ('"fox quick"', '{}', 'in their order'),
    ('quick -brown', '{quick}', 'a minus excludes a word'),
    ('quick -"brown fox"', '{quick}', 'or a phrase'),
    ('quick -the', '{quick,brown}', 'but no stop word'),
    ('fox - brown', '{brown,quick}', 'a minus alone excludes nothing'),
    ('-fox', '{}', 'an exclusion alone finds nothing'),
    ('-fox -brown', '{}', 'nor do two'),
    ('e-mail', '{mail}', 'a hyphen excludes nothing'),
    ('state-of-the-art', '{mail}', 'not even three'),
    ('anti-aliasing', '{mail}', 'a word is found with its hyphen'),
    ('aliasing', '{mail}', 'and by the part behind it'),
    ('ERR_404', '{identifiers}', 'an identifier is found'),
    ('node.js', '{identifiers}', 'and a name with a dot'),
    ('it''s', '{}', 'an apostrophe is no quote'),
    ('the', '{}', 'stop words find nothing'),
    ('the of and', '{}', 'nor do many'),
    ('', '{}', 'nothing finds nothing'),
    (null, '{}', 'and null neither'),
    ('?!…', '{}', 'punctuation finds nothing'),
    ('😀', '{}', 'nor does a smile'),
    ('quick 😀', '{quick,brown}', 'but it does no harm'),
    ('(quick', '{quick,brown}', 'nor a bracket'),
    ('quick & | ! ( ) <-> :*', '{quick,brown}', 'nor what means something in a tsquery'),
    ('"quick', '{quick,brown}', 'nor a quote that does not end')
) as w (query, uris, sentence);
select results_eq(
    $$ select count(*) from rag.search('the', embedding => '[1,0,0]', mode => 'hybrid') $$,
    array[0::bigint], 'nothing embedded, nothing but stop words'
);

-- Odd queries ---------------------------------------------------------------------------------

create temporary table queries (query text);
insert into queries (query)
values
(E'\\'), (E'\\\\'), (''''), (''''''), ('"'), ('""'), ('"""'), ('-'), ('--'), ('-"'), ('-"a'),
('a -'), (E'C:\\temp\\x'), (E'\\'''), (E'a\\'' | b'), (''' or 1=1 --'), ('%s %I $1 {}'), ('a:*'),
('a:ABCD'), ('!'), ('a & & b'), ('((((('), ('))'), ('<->'), ('a <2> b'), ('a/b/../c?d=e&f'),
('x@y.z'), ('1e400'), ('-1'), (E'\t\r\n'), (E'\u200b\u0301'), (E'\x01'), ('日本語 検索'),
('עברית العربية'), ('👩‍👩‍👧'), (repeat('x', 10000)), (repeat('word ', 2000)), (repeat('-a ', 3333)),
(repeat('"a" ', 2500)), (repeat('"', 10000)), (repeat(E'\\', 10000)), (repeat('''', 10000)),
(repeat('(', 10000)), (repeat('😀', 10000));
insert into queries (query)
select string_agg('w' || n, ' ') from generate_series(1, 1800) as n;
select lives_ok(
    format('select * from rag.search(%L, mode => ''lexical'')', q.query),
    format('a query of %s characters: %s', length(q.query), left(to_json(q.query)::text, 20))
)
from queries as q;

-- Languages -----------------------------------------------------------------------------------

do $$
begin
    perform rag.create_tenant('languages');
    perform rag.set_tenant('languages');
    perform rag.create_collection('es', language => 'spanish');
    perform rag.put('Refunds are paid within fourteen days.', 'en');
    perform rag.put('Las devoluciones se pagan en catorce días.', 'es', collection => 'es');
    perform rag.put('Die Häuser stehen im Wald.', 'de', language => 'german');
    perform rag.put(
        'Les remboursements sont versés à la mort de l''animal.', 'fr', language => 'french'
    );
    perform rag.put('Возврат денег занимает четырнадцать дней.', 'ru', language => 'russian');
end
$$;
select is(pg_temp.found(w.query), w.uris, w.sentence)
from (
    values
    ('refunding', '{en}'::text[], 'an English word is found by its stem'),
    ('devolución', '{es}', 'a Spanish one by its own'),
    ('pagando', '{es}', 'a verb too'),
    ('haus', '{de}', 'a document may have another language than its collection'),
    ('dias', '{es}', 'an accent may be left out'),
    ('días', '{es}', 'or not'),
    ('de la', '{}', 'Spanish stop words find nothing'),
    ('rembourseront', '{fr}', 'a French noun is found by the verb of its stem'),
    ('animaux', '{fr}', 'or in the plural, without the article before its apostrophe'),
    ('возвраты', '{ru}', 'a Russian noun in another case'),
    ('ВОЗВРАТА', '{ru}', 'in capitals'),
    ('и за', '{}', 'Russian stop words find nothing')
) as w (query, uris, sentence);
select set_eq(
    $$ select uri from rag.search('refund devoluciones') $$, array['en', 'es'],
    'a query may be in two languages'
);
select results_eq(
    $$ select uri from rag.search('pagando refund', collection => 'es') $$, array['es'],
    'a collection is asked in its own language'
);

-- Titles and headings -------------------------------------------------------------------------

do $$
begin
    perform rag.create_tenant('books');
    perform rag.set_tenant('books');
    perform rag.put('Nothing of note.', 'book', 'The Zeppelin');
    perform rag.put(
        E'# Guarantee\n\n' || repeat('It lasts for two years. ', 80), 'manual', chunk_size => 500
    );
end
$$;
select is(pg_temp.found('zeppelins'), '{book}', 'a document is found by its title');
select cmp_ok(
    cardinality(pg_temp.found('guarantee')), '>=', 4,
    'and by its heading, all that stands below it'
);
do $$ begin perform rag.put('Nothing of note.', 'book', 'The Airship'); end $$;
select is(pg_temp.found('airships'), '{book}', 'a new title is found at once');
select is(pg_temp.found('zeppelin'), '{}', 'and the old one is not');

-- What goes -----------------------------------------------------------------------------------

do $$
begin
    perform rag.set_tenant('default');
    perform pg_temp.put('gone', 'fig', '[1,0,0]');
    perform pg_temp.put('changed', 'grape', '[1,0,0]');
end
$$;
select is(pg_temp.found('fig grape'), '{gone,changed}', 'two documents are there');
do $$ begin perform rag.delete('gone'); perform rag.put('guava', 'changed'); end $$;
select is(pg_temp.found('fig grape guava'), '{changed}', 'a deleted one is gone at once');
select is_empty(
    $$
        select from rag.search('fig grape', embedding => '[1,0,0]')
        where uri in ('gone', 'changed')
    $$,
    'so is its meaning, and that of a text that was replaced'
);

-- What is refused -----------------------------------------------------------------------------

select throws_ok(
    format('select rag.search(''apple'', %s)', w.parameters), w.state, w.message,
    format('refused: %s', w.parameters)
)
from (
    values
    ('0', '22023', 'invalid k'),
    ('-1', '22023', 'invalid k'),
    ('1001', '22023', 'invalid k'),
    ('null', '22023', 'invalid k'),
    ('mode => ''fuzzy''', '22023', 'unknown mode "fuzzy"'),
    ('mode => null', '22023', 'unknown mode "null"'),
    ('fusion => ''magic''', '22023', 'unknown fusion "magic"'),
    ('mode => ''semantic''', 'RG006', 'mode semantic needs the embedding of the query'),
    ('lexical_weight => -0.1', '22023', 'invalid lexical_weight'),
    ('lexical_weight => 1.1', '22023', 'invalid lexical_weight'),
    ('lexical_weight => ''NaN''', '22023', 'invalid lexical_weight'),
    ('embedding => ''[1,0]''', '22023', 'the embedding has the wrong number of dimensions'),
    ('embedding => ''[1,0,0,0]''', '22023', 'the embedding has the wrong number of dimensions'),
    ('embedding => ''[0,0,0]''', '22023', 'the embedding is a zero vector'),
    ('filter => ''[]''', '22023', null),
    ('filter => ''{"a": {"$like": 1}}''', '22023', null)
) as w (parameters, state, message);

-- Stop words of one language are words in another -----------------------------------------------

select is(
    btrim(rag._without_stop_words(w.query, w.languages)), w.words, w.sentence
)
from (
    values
    ('how do refunds work', '{english}'::text[], 'how do refunds work', 'one knows its own'),
    ('refunds how do', '{english,spanish}', 'refunds', 'of several each leaves out its own'),
    ('la "the end" e-mail -the', '{english,spanish}', '"the end" e-mail -the',
        'phrases, hyphens and exclusions stay'),
    ('the', '{english,spanish}', '', 'nothing may be left')
) as w (query, languages, words, sentence);

-- What is excluded is excluded in every language.
do $$
begin
    perform rag.create_tenant('two languages');
    perform rag.set_tenant('two languages');
    perform rag.create_collection('es', language => 'spanish');
    perform rag.put('alpha the dogs are running fast', 'run');
    perform rag.put('alpha the cats sleep', 'sleep');
    perform rag.put('alpha los perros', 'perros', collection => 'es');
end
$$;
select set_eq(
    $$ select s.uri from rag.search('alpha -running', mode => 'lexical') as s $$,
    array['sleep', 'perros'], 'an exclusion holds for all languages'
);
select set_eq(
    $$ select s.uri from rag.search('alpha "the dogs"', mode => 'lexical') as s $$,
    array['run'], 'a phrase may be there in one of them'
);

-- A collection's own fusion is the same as that fusion asked for.
do $$ begin perform rag.alter_collection('default', fusion => 'linear'); end $$;
select results_eq(
    $$
        select s.uri, s.score
        from rag.search('alpha dogs', 10, 'default', mode => 'lexical') as s
    $$,
    $$
        select s.uri, s.score
        from rag.search('alpha dogs', 10, 'default', mode => 'lexical', fusion => 'linear') as s
    $$,
    'the fusion of a collection is searched like that fusion'
);

select finish();
rollback;
