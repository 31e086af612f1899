-- What a search may be asked for besides: few chunks of a document, neighbours, the settings of its
-- collection, enriched text. And queries that nobody should ask.

begin;
select plan(86);

do $$
begin
    delete from rag.models;
    perform rag._create_model('tiny', 3, 'test', is_active => true);
    perform rag.set_tenant('default');
end
$$;

-- Not more than so many of a document ------------------------------------------------------------

-- One document of 600 passages that all fit better than three others of two.
do $$
begin
    perform rag.put(
        (
            select string_agg(repeat('apple ', 6) || i, E'\n\n')
            from generate_series(1, 600) as i
        ),
        'long', strategy => 'recursive', chunk_size => 50, chunk_overlap => 0
    );
    for i in 1..3 loop
        perform rag.put(
            format(E'an apple that is in text number %s\n\nand another apple stands here', i),
            'short ' || i, strategy => 'recursive', chunk_size => 50, chunk_overlap => 0
        );
    end loop;
    insert into rag.embeddings (
        partition_id, tenant_id, chunk_id, model_id, collection_id, embedding
    )
    select
        c.partition_id, c.tenant_id, c.chunk_id, m.model_id, c.collection_id,
        case when d.uri = 'long' then '[1,0,0]' else '[1,1,0]' end::halfvec
    from rag.chunks as c
    join rag.documents as d on d.document_id = c.document_id
    cross join rag.models as m
    where m.is_active;
end
$$;
select cmp_ok(
    (select count(*)::int from rag.chunks as c join rag.documents as d using (document_id)
        where d.uri = 'long'),
    '>=', 600, 'a document of many passages'
);
select results_eq(
    format($$
        select count(*)::int, max(n.passages)::int, count(distinct n.uri)::int
        from (
            select s.uri, count(*) over (partition by s.uri) as passages
            from rag.search(
                'apple', %s, mode => %L, embedding => '[1,0,0]', max_per_document => %s
            ) as s
        ) as n
    $$, w.k, w.mode, w.most),
    format('values (%s, %s, %s)', w.found, w.max, w.documents),
    format('k %s, at most %s of a document, mode %s', w.k, w.most, w.mode)
)
from unnest('{hybrid,lexical,semantic}'::text[]) as m (mode)
cross join lateral (
    values
    (m.mode, 3, 1, 3, 1, 3),
    (m.mode, 4, 1, 4, 1, 4),
    (m.mode, 10, 1, 4, 1, 4),
    (m.mode, 10, 2, 8, 2, 4),
    (m.mode, 10, 4, 10, 4, 4),
    (m.mode, 1000, 600, 606, 600, 4)
) as w (mode, k, most, found, max, documents);
select results_eq(
    $$
        select uri from rag.search(
            'apple', 2, mode => 'lexical', max_per_document => 1, embedding => '[1,0,0]'
        )
    $$,
    array['long', 'short 1'], 'the best of each, best first'
);
select results_eq(
    $$
        select s.uri, s.score
        from rag.search('apple', 4, max_per_document => 1, embedding => '[1,0,0]',
            min_score => -1000) as s
        where s.score >= 1
    $$,
    $$
        select s.uri, s.score
        from rag.search('apple', 4, max_per_document => 1, embedding => '[1,0,0]',
            min_score => 1) as s
    $$,
    'together with min_score'
);

-- Neighbours --------------------------------------------------------------------------------------

do $$
begin
    perform rag.create_tenant('neighbours');
    perform rag.set_tenant('neighbours');
    perform rag.put(
        E'One is here, it really is here. Yes.\n\nTwo is next to it, as it should.   \n\n'
        'Three has a fig, and it is ripe now.\n\nFour follows, as all of them do, yes.\n\n'
        'Five ends what began with the one.',
        'a', strategy => 'recursive', chunk_size => 50, chunk_overlap => 0
    );
    perform rag.put(
        (
            select string_agg(format('Sentence %s of the long text.', i), ' ')
            from generate_series(1, 60) as i
        ) || ' Ünïcödé fïg.',
        'overlap', strategy => 'recursive', chunk_size => 120, chunk_overlap => 50
    );
end
$$;
select results_eq(
    format($$ select content from rag.search('fig three', 1, neighbours => %s) $$, w.n),
    array[w.content], format('%s neighbours', w.n)
)
from (
    values
    (0, 'Three has a fig, and it is ripe now.'),
    (
        1,
        E'Two is next to it, as it should.   \n\nThree has a fig, and it is ripe now.\n\n'
        'Four follows, as all of them do, yes.'
    ),
    (
        2,
        E'One is here, it really is here. Yes.\n\nTwo is next to it, as it should.   \n\n'
        'Three has a fig, and it is ripe now.\n\nFour follows, as all of them do, yes.\n\n'
        'Five ends what began with the one.'
    ),
    (
        100,
        E'One is here, it really is here. Yes.\n\nTwo is next to it, as it should.   \n\n'
        'Three has a fig, and it is ripe now.\n\nFour follows, as all of them do, yes.\n\n'
        'Five ends what began with the one.'
    )
) as w (n, content);
select is_empty(
    format($$
        select s.content
        from rag.search('sentence fig long', 100, neighbours => %s) as s
        join rag.documents as d on d.document_id = s.document_id
        join rag.chunks as c on c.chunk_id = s.chunk_id
        where
            s.content <> substr(
                d.content, s.start_offset + 1, s.end_offset - s.start_offset
            )
            or s.start_offset > c.start_offset
            or s.end_offset < c.end_offset
            or s.ordinal <> c.ordinal
    $$, n),
    format('with %s, content is what stands between the offsets, around the chunk', n)
)
from generate_series(0, 3) as n;
select is(
    (
        select regexp_count(s.content, 'Sentence 30 of')
        from rag.search('"sentence 30"', 1, neighbours => 3) as s
    ),
    1, 'what chunks share is there once'
);
select results_eq(
    $$ select chunk_id, score from rag.search('fig three', neighbours => 2) $$,
    $$ select chunk_id, score from rag.search('fig three') $$,
    'neighbours change no rank'
);

-- What is refused ---------------------------------------------------------------------------------

select throws_ok(format('select rag.search(''x'', %s)', w.parameters), '22023', w.message)
from (
    values
    ('max_per_document => 0', 'invalid max_per_document'),
    ('neighbours => -1', 'invalid neighbours'),
    ('neighbours => 101', 'invalid neighbours'),
    ('neighbours => null', 'invalid neighbours')
) as w (parameters, message);

-- Settings of a collection ------------------------------------------------------------------------

do $$
begin
    perform rag.create_tenant('settings');
    perform rag.set_tenant('settings');
    perform rag.create_collection('c', lexical_weight => 1, fusion => 'rrf');
    perform rag.put('apple', 'words', collection => 'c');
    perform rag.put('pear', 'meaning', collection => 'c');
    insert into rag.embeddings (
        partition_id, tenant_id, chunk_id, model_id, collection_id, embedding
    )
    select
        c.partition_id, c.tenant_id, c.chunk_id, m.model_id, c.collection_id,
        case when c.content = 'pear' then '[1,0,0]' else '[0,1,0]' end::halfvec
    from rag.chunks as c
    join rag.tenants as t on t.tenant_id = c.tenant_id and t.name = 'settings'
    cross join rag.models as m
    where m.is_active;
end
$$;
create function pg_temp.first(collection text, lexical_weight real, fusion text)
    returns text
    language sql
as $$
    select s.uri || ' ' || round(s.score::numeric, 3)
    from rag.search(
        'apple', 1, first.collection, embedding => '[1,0,0]',
        lexical_weight => first.lexical_weight, fusion => first.fusion
    ) as s
$$;
select is(pg_temp.first(w.collection, w.weight, w.fusion), w.found, w.sentence)
from (
    values
    ('c', null::real, null, 'words 1.000', 'a collection has its own weights'),
    ('c', 0, null, 'meaning 1.000', 'the caller''s go before'),
    ('c', 0, 'linear', 'meaning 1.000', 'both of them'),
    ('c', null, 'linear', 'meaning 0.500', 'a weight holds for its fusion'),
    (null, null, 'rrf', 'words 0.992', 'in all collections the default holds')
) as w (collection, weight, fusion, found, sentence);
do $$ begin perform rag.alter_collection('c', lexical_weight => 0); end $$;
select is(pg_temp.first('c', null, null), 'meaning 1.000', 'they may be changed');

create function pg_temp.found(query text)
    returns text[]
    language sql
as $$
    select coalesce(array_agg(s.uri order by s.rank), '{}')
    from rag.search(found.query, mode => 'lexical') as s
$$;
do $$
begin
    perform rag.put(
        'Nothing of note.', 'folder/annual-report_2024.pdf?x=hidden', metadata => '{
            "author": "Ada Lovelace", "tags": ["engine", {"deep": "loom"}], "page": 42,
            "ok": true, "none": null, "other": "unasked"
        }'
    );
end
$$;
select is(pg_temp.found('lovelace'), '{}', 'metadata is not searched');
select is(
    rag.alter_collection('default', enrich => '{author,tags,page,none,ok,missing,$file_name}'),
    0::bigint, 'unless the collection says so'
);
select is(
    pg_temp.found(w.query) = '{folder/annual-report_2024.pdf?x=hidden}', w.is_found,
    format('enriched: %s', w.query)
)
from (
    values
    ('lovelace', true), ('engines', true), ('loom', true), ('42', true), ('annual', true),
    ('report', true), ('annual-report_2024.pdf', true), ('pdf', true), ('"ada lovelace"', true),
    ('true', false), ('unasked', false), ('folder', false), ('hidden', false), ('author', false)
) as w (query, is_found);
do $$
begin
    perform rag.put(
        'Nothing of note.', 'folder/annual-report_2024.pdf?x=hidden',
        metadata => '{"author": "Grace Hopper"}'
    );
end
$$;
select is(
    (select array_agg(cardinality(pg_temp.found(q)) order by q)
        from unnest('{hopper,lovelace}'::text[]) as q),
    '{1,0}', 'other metadata is found at once, and the old is not'
);
do $$ begin perform rag.alter_collection('default', language => 'german'); end $$;
do $$ begin perform rag.put('Die Häuser stehen.', 'de'); end $$;
select is(pg_temp.found('haus'), '{de}', 'another language for what is put');
select is(
    (
        select n.languages
        from rag.collections as n
        join rag.tenants as t on t.tenant_id = n.tenant_id and t.name = 'settings'
        where n.name = 'default'
    ),
    '{german}', 'and for what is there'
);
select results_eq(
    $$
        select status from rag.put_many('[{
            "content": "Nothing of note.", "uri": "folder/annual-report_2024.pdf?x=hidden",
            "metadata": {"author": "Grace Hopper"}
        }]')
    $$,
    array['unchanged'], 'which is the same when it is put again'
);
select throws_ok(format('select rag.alter_collection(%s)', w.parameters), w.state, w.message)
from (
    values
    ('''nowhere''', 'RG003', 'collection "nowhere" does not exist'),
    ('''c'', k1 => 0', '22023', 'invalid k1 or b'),
    ('''c'', b => ''NaN''', '22023', 'invalid k1 or b'),
    ('''c'', title_weight => -1', '22023', 'invalid weight'),
    ('''c'', enrich => ''{$other}''', '22023', 'invalid enrich'),
    ('''c'', enrich => array[null]', '22023', 'invalid enrich'),
    ('''c'', lexical_weight => 2', '22023', 'invalid lexical_weight'),
    ('''c'', fusion => ''magic''', '22023', 'unknown fusion "magic"'),
    ('''c'', chunk_size => 1', '22023', null),
    ('''c'', language => ''klingon''', '22023', null)
) as w (parameters, state, message);

-- Many words --------------------------------------------------------------------------------------

do $$
begin
    perform rag.create_tenant('many');
    perform rag.set_tenant('many');
    perform rag.put(
        'twice twice ' || (select string_agg('w' || i, ' ') from generate_series(1, 16500) as i),
        'many', strategy => 'none', chunk_size => 100000, chunk_overlap => 0
    );
end
$$;
select is(
    (
        select length(l.lexemes)
        from rag.lexemes as l
        join rag.tenants as t on t.tenant_id = l.tenant_id and t.name = 'many'
    ),
    16000, 'of more than 16,000 lexemes of one chunk so many are kept'
);
select is(pg_temp.found('twice'), '{many}', 'those that come most often first');
select ok(
    not exists (
        select
        from rag.lexeme_statistics as d
        join rag.tenants as t on t.tenant_id = d.tenant_id and t.name = 'many'
        where d.size > 16000
    ),
    'and no statistics of the others'
);

-- Queries that nobody should ask ------------------------------------------------------------------

do $$
begin
    perform rag.create_tenant('hard');
    perform rag.set_tenant('hard');
    perform rag.put_many((
        select jsonb_agg(jsonb_build_object(
            'uri', i::text,
            'content', format('alpha beta gamma delta omega n%s m%s', i, i % 7)
        ))
        from generate_series(1, 1500) as i
    ), strategy => 'none');
end
$$;
select is(
    (select count(*)::int from rag.search(w.query, 10, mode => 'lexical')), w.found,
    format('%s: %s', w.found, left(w.query, 30))
)
from (
    values
    ('alpha beta gamma delta omega', 10),
    ('alpha', 10),
    ((select string_agg('n' || i, ' ') from generate_series(1, 200) as i), 10),
    ('the of and', 0),
    ('?!., …', 0),
    (repeat('alpha ', 1667), 10),
    ('"alpha beta', 10),
    ('"alpha" "beta', 10),
    ('-alpha', 0),
    ('n7 -m0', 0),
    ('🙂 n8 🙂', 1)
) as w (query, found);
select results_eq(
    $$
        select uri
        from rag.search('alpha beta gamma delta omega n77', 1, mode => 'lexical')
    $$,
    array['77'], 'the rare word decides'
);
select finish();
rollback;
