-- Documents in and out: put, put_many, delete. Two sessions, commits and 50 MB are in
-- tests/test_ingest_sql.py.

begin;
select plan(148);

-- A paragraph is a chunk here: two do not fit into 200 characters.
create function pg_temp.paragraph(word text)
    returns text
    language sql
    immutable
as $$
    select rpad('', 150 - 150 % (length(word) + 1), word || ' ') || 'end.'
$$;

create function pg_temp.text_of(variadic words text[])
    returns text
    language sql
    immutable
as $$
    select string_agg(pg_temp.paragraph(w.word), E'\n\n' order by w.n)
    from unnest(words) with ordinality as w (word, n)
$$;

-- What stands for the model: another text, another direction.
create function pg_temp.vector_of(content text)
    returns vector
    language sql
    immutable
as $$
    select array_agg(hashtextextended(content, i.n) / 9.3e18 order by i.n)::real[]::vector
    from generate_series(1, 384) as i (n)
$$;

create function pg_temp.embed()
    returns void
    language plpgsql
as $$
begin
    loop
        perform rag.complete_jobs(
            c.lease_token, array_agg(c.job_id), array_agg(pg_temp.vector_of(c.content))
        )
        from rag.claim_jobs('test', 1000) as c
        group by c.lease_token;
        exit when not found;
    end loop;
end
$$;

-- The chunks of a document of the current tenant, with all that hangs on them; place tells a row
-- that was written again from one that was not.
create function pg_temp.chunks_of(uri text, collection text default 'default')
    returns table (
        ordinal int,
        chunk_id bigint,
        word text,
        place text,
        start_offset int,
        is_embedded boolean,
        jobs bigint,
        lexemes tsvector,
        metadata jsonb
    )
    language sql
as $$
    select
        c.ordinal, c.chunk_id, split_part(c.content, ' ', 1), c.ctid::text || l.ctid::text,
        c.start_offset,
        (
            select bool_and(e.embedding <=> pg_temp.vector_of(c.content)::halfvec < 0.001)
            from rag.embeddings as e
            where e.tenant_id = c.tenant_id and e.chunk_id = c.chunk_id
        ) is true,
        (
            select count(*)
            from rag.jobs as j
            where
                j.tenant_id = c.tenant_id
                and j.chunk_id = c.chunk_id
                and j.content_hash = c.content_hash
        ),
        l.lexemes, c.metadata
    from rag.documents as d
    join rag.collections as n
        on n.tenant_id = d.tenant_id and n.collection_id = d.collection_id
    join rag.chunks as c on c.tenant_id = d.tenant_id and c.document_id = d.document_id
    join rag.lexemes as l
        on l.tenant_id = c.tenant_id
        and l.chunk_id = c.chunk_id
        and l.partition_id = c.partition_id
        and l.collection_id = c.collection_id
    where
        d.tenant_id = (select x.tenant_id from rag._context() as x)
        and d.uri = chunks_of.uri
        and n.name = chunks_of.collection
$$;

-- What can be wrong with what is stored, whatever was put.
create temporary view faults as
select 'offset' as fault, c.chunk_id
from rag.chunks as c
join rag.documents as d on d.tenant_id = c.tenant_id and d.document_id = c.document_id
where
    substr(d.content, c.start_offset + 1, c.end_offset - c.start_offset) <> c.content
    or c.content_hash <> rag._hash(c.content)
    or c.collection_id <> d.collection_id
    or c.metadata <> d.metadata
union all
select 'hash', d.document_id
from rag.documents as d
where
    d.content_hash <> rag._hash(d.content)
    or not exists (
        select
        from rag.chunks as c
        where c.tenant_id = d.tenant_id and c.document_id = d.document_id and c.ordinal = 0
    )
union all
select 'ordinals', c.document_id
from rag.chunks as c
group by c.tenant_id, c.document_id
having count(*) <> max(c.ordinal) + 1 or count(distinct c.ordinal) <> count(*)
union all
select 'orphan', c.chunk_id
from rag.chunks as c
left join rag.documents as d on d.tenant_id = c.tenant_id and d.document_id = c.document_id
left join rag.tenants as t on t.tenant_id = c.tenant_id and t.partition_id = c.partition_id
where d.document_id is null or t.tenant_id is null
union all
select 'lexemes', coalesce(c.chunk_id, l.chunk_id)
from rag.chunks as c
full join rag.lexemes as l
    on l.tenant_id = c.tenant_id
    and l.chunk_id = c.chunk_id
    and l.partition_id = c.partition_id
    and l.collection_id = c.collection_id
where c.chunk_id is null or l.chunk_id is null
union all
select 'embedding', e.chunk_id
from rag.embeddings as e
left join rag.chunks as c
    on c.tenant_id = e.tenant_id
    and c.chunk_id = e.chunk_id
    and c.partition_id = e.partition_id
    and c.collection_id = e.collection_id
where c.chunk_id is null or e.embedding <=> pg_temp.vector_of(c.content)::halfvec > 0.001
union all
-- Each chunk has for each model either its embedding or a job for just this text.
select 'job', coalesce(c.chunk_id, w.chunk_id)
from (select c.*, m.model_id from rag.chunks as c cross join rag.models as m) as c
full join (
    select e.tenant_id, e.chunk_id, e.model_id, null::uuid as content_hash from rag.embeddings as e
    union all
    select j.tenant_id, j.chunk_id, j.model_id, j.content_hash from rag.jobs as j
) as w on w.tenant_id = c.tenant_id and w.chunk_id = c.chunk_id and w.model_id = c.model_id
group by coalesce(c.chunk_id, w.chunk_id)
having
    count(*) <> (select count(*) from rag.models)
    or bool_or(c.chunk_id is null or w.chunk_id is null)
    or bool_or(w.content_hash <> c.content_hash);

do $$
begin
    perform rag.create_tenant('acme');
    perform rag.create_tenant('globex');
    perform rag.set_tenant('globex');
    perform rag.create_collection('small', 'recursive', 200, 0);
    perform rag.set_tenant('acme');
    perform rag.create_collection('small', 'recursive', 200, 0);
    perform rag.create_collection('other', 'recursive', 200, 0);
    perform rag.create_collection('cuentos', language => 'spanish');
end
$$;

create temporary table seen (step text, id bigint);

-- Put -------------------------------------------------------------------------------------------

insert into seen
select 'first', rag.put(
    pg_temp.text_of('alpha', 'beta', 'gamma', 'delta'), 'a.md', 'The title', '{"lang": "en"}',
    'small'
);
select results_eq(
    $$
        select d.document_id, d.title, d.metadata, d.content, d.content_hash, d.language, d.chunking
        from rag.documents as d
        where d.uri = 'a.md'
    $$,
    $$
        select
            s.id, 'The title', '{"lang": "en"}'::jsonb, t.content, rag._hash(t.content), 'english',
            '{"strategy": "recursive", "size": 200, "overlap": 0}'::jsonb
        from seen as s, pg_temp.text_of('alpha', 'beta', 'gamma', 'delta') as t (content)
    $$,
    'put stores the document and returns its id'
);
select results_eq(
    $$ select c.ordinal, c.word from pg_temp.chunks_of('a.md', 'small') as c order by 1 $$,
    $$ values (0, 'alpha'), (1, 'beta'), (2, 'gamma'), (3, 'delta') $$,
    'its chunks are numbered in their order'
);
select results_eq(
    $$
        select c.start_offset
        from pg_temp.chunks_of('a.md', 'small') as c
        where c.word = 'beta'
    $$,
    $$ select length(pg_temp.paragraph('alpha')) + 2 $$,
    'offsets count from 0'
);
select is(
    (select rag._hash('Grüße')),
    substr(encode(sha256(convert_to('Grüße', 'UTF8')), 'hex'), 1, 32)::uuid,
    'a hash is the first 128 bits of the SHA-256 of the UTF-8'
);
select is_empty('select * from faults', 'nothing is at odds with anything');
select results_eq(
    $$ select c.jobs, c.is_embedded from pg_temp.chunks_of('a.md', 'small') as c $$,
    $$ values (1::bigint, false), (1, false), (1, false), (1, false) $$,
    'each chunk waits for its embedding'
);
select results_eq(
    $$ select s.uri, s.content ~ '^gamma' from rag.search('gamma') as s $$,
    $$ values ('a.md', true) $$,
    'and is found by its words at once'
);
select is(
    (select s.query_embedding from rag.search('gamma') as s), 'none', 'by its words alone'
);

do $$ begin perform pg_temp.embed(); end $$;
select is_empty('select * from rag.jobs', 'the worker did them all');
select ok(
    (select bool_and(c.is_embedded) from pg_temp.chunks_of('a.md', 'small') as c),
    'each chunk has its own embedding'
);
create temporary table before as select * from pg_temp.chunks_of('a.md', 'small');

-- The same again --------------------------------------------------------------------------------

create temporary table document_before as select d.ctid as place, d.* from rag.documents as d;
select is(
    rag.put(
        pg_temp.text_of('alpha', 'beta', 'gamma', 'delta'), 'a.md', 'The title',
        '{"lang": "en"}', 'small'
    ),
    (select s.id from seen as s), 'the same again is the same document'
);
select results_eq(
    $$ select u.status, u.chunks from rag.put_many(
        jsonb_build_array(jsonb_build_object(
            'uri', 'a.md', 'title', 'The title', 'metadata', '{"lang": "en"}'::jsonb,
            'content', pg_temp.text_of('alpha', 'beta', 'gamma', 'delta')
        )), 'small'
    ) as u $$,
    $$ values ('unchanged', 4) $$,
    'and unchanged, says put_many'
);
select bag_eq(
    $$ select * from pg_temp.chunks_of('a.md', 'small') $$, 'select * from before',
    'no chunk was written'
);
select bag_eq(
    'select d.ctid as place, d.* from rag.documents as d', 'select * from document_before',
    'nor the document'
);
select is_empty('select * from rag.jobs', 'and there is nothing to do');
select is(
    rag.put(
        pg_temp.text_of('alpha', 'beta', 'gamma', 'delta'), 'a.md', 'The title',
        '{  "lang":"en" }', 'small', 'recursive', 200, 0, 'pg_catalog.english'
    ),
    (select s.id from seen as s), 'settings said that hold anyway are the same, too'
);
select bag_eq(
    'select d.ctid as place, d.* from rag.documents as d', 'select * from document_before',
    'and write nothing'
);

-- Another text ----------------------------------------------------------------------------------

select is(
    rag.put(
        pg_temp.text_of('alpha', 'beta', 'changed', 'delta'), 'a.md', 'The title',
        '{"lang": "en"}', 'small'
    ),
    (select s.id from seen as s), 'an edited document keeps its id'
);
select results_eq(
    $$
        select c.word, c.chunk_id = b.chunk_id, c.is_embedded, c.jobs
        from pg_temp.chunks_of('a.md', 'small') as c
        left join before as b using (word)
        order by c.ordinal
    $$,
    $$
        values
        ('alpha', true, true, 0::bigint), ('beta', true, true, 0), ('changed', null, false, 1),
        ('delta', true, true, 0)
    $$,
    'chunks of the same text keep id and embedding, one chunk waits for its own'
);
select results_eq(
    $$
        select b.word
        from before as b
        join pg_temp.chunks_of('a.md', 'small') as c using (chunk_id, place)
        order by b.ordinal
    $$,
    $$ values ('alpha'), ('beta') $$,
    'what stands before the edit was not written again'
);
select is_empty($$ select * from rag.search('gamma') $$, 'the old paragraph is not found any more');
select isnt_empty($$ select * from rag.search('changed') $$, 'the new one is');
select is_empty('select * from faults', 'nothing is left of it');
do $$ begin perform pg_temp.embed(); end $$;

do $$
begin
    perform rag.put(
        pg_temp.text_of('new', 'delta', 'alpha', 'beta', 'alpha'), 'a.md', collection => 'small'
    );
end
$$;
select results_eq(
    $$
        select c.ordinal, c.word, c.chunk_id = b.chunk_id, c.is_embedded
        from pg_temp.chunks_of('a.md', 'small') as c
        left join before as b using (word)
        order by c.ordinal
    $$,
    $$
        values
        (0, 'new', null, false), (1, 'delta', true, true), (2, 'alpha', true, true),
        (3, 'beta', true, true), (4, 'alpha', false, true)
    $$,
    'paragraphs that move keep their embeddings; a copy gets one without any work'
);
select is_empty('select * from faults', 'nothing is at odds after moving');
do $$
begin
    perform pg_temp.embed();
    perform rag.put(pg_temp.text_of('alpha', 'beta'), 'a.md', collection => 'small');
end
$$;
select results_eq(
    $$
        select c.ordinal, c.word, c.chunk_id = b.chunk_id
        from pg_temp.chunks_of('a.md', 'small') as c
        join before as b using (word)
        order by c.ordinal
    $$,
    $$ values (0, 'alpha', true), (1, 'beta', true) $$,
    'of two copies the first stays'
);
select results_eq(
    $$ select d.title, d.metadata from rag.documents as d $$,
    $$ values (null::text, '{}'::jsonb) $$,
    'put replaces: title and metadata that are not given are gone'
);
select is_empty('select * from faults', 'nothing is left over');

-- Another title, other metadata -----------------------------------------------------------------

truncate before;
insert into before select * from pg_temp.chunks_of('a.md', 'small');
select results_eq(
    $$
        select u.status
        from rag.put_many(jsonb_build_array(jsonb_build_object(
            'uri', 'a.md', 'title', 'Quokka', 'content', pg_temp.text_of('alpha', 'beta')
        )), 'small') as u
    $$,
    $$ values ('updated') $$,
    'another title is an update'
);
select results_eq(
    $$
        select c.chunk_id, c.is_embedded, c.jobs
        from pg_temp.chunks_of('a.md', 'small') as c
        order by c.ordinal
    $$,
    $$ select b.chunk_id, true, 0::bigint from before as b order by b.ordinal $$,
    'that keeps chunks and embeddings'
);
select results_eq(
    $$ select s.ordinal from rag.search('quokka') as s order by 1 $$, $$ values (0), (1) $$,
    'and each chunk is found by it'
);
truncate before;
insert into before select * from pg_temp.chunks_of('a.md', 'small');
do $$
begin
    perform rag.put(
        pg_temp.text_of('alpha', 'beta'), 'a.md', 'Quokka', '{"n": [1, {"a": null}]}', 'small'
    );
end
$$;
select results_eq(
    $$
        select c.chunk_id, c.metadata, c.lexemes, c.is_embedded, c.jobs
        from pg_temp.chunks_of('a.md', 'small') as c
        order by c.ordinal
    $$,
    $$
        select b.chunk_id, '{"n": [1, {"a": null}]}'::jsonb, b.lexemes, true, 0::bigint
        from before as b
        order by b.ordinal
    $$,
    'other metadata go to the chunks, which stay'
);
select is_empty('select * from faults', 'nothing is at odds after editing');
do $$
begin
    perform rag.put(pg_temp.text_of('alpha', 'beta'), 'a.md', null, null, 'small');
end
$$;
select is(
    (select d.metadata from rag.documents as d), '{}'::jsonb, 'metadata null are no metadata'
);

-- Another language ------------------------------------------------------------------------------

do $$
begin
    perform rag.put(
        'Die Häuser am See. ' || pg_temp.paragraph('alpha'), 'h', collection => 'small'
    );
    perform pg_temp.embed();
end
$$;
truncate before;
insert into before select * from pg_temp.chunks_of('h', 'small');
select is_empty($$ select * from rag.search('Haus') $$, 'in English "Häuser" is not "Haus"');
do $$
begin
    perform rag.put(
        'Die Häuser am See. ' || pg_temp.paragraph('alpha'), 'h', collection => 'small',
        language => 'german'
    );
end
$$;
select results_eq(
    $$ select s.uri from rag.search('Haus') as s $$, $$ values ('h') $$, 'in German it is'
);
select results_eq(
    $$ select c.chunk_id, c.is_embedded, c.jobs from pg_temp.chunks_of('h', 'small') as c $$,
    $$ select b.chunk_id, true, 0::bigint from before as b $$,
    'another language keeps chunks and embeddings'
);
select results_eq(
    $$
        select l.language
        from rag.collections as n
        cross join unnest(n.languages) as l (language)
        where n.name = 'small' and n.tenant_id = (select c.tenant_id from rag._context() as c)
        order by 1
    $$,
    $$ values ('english'), ('german') $$,
    'the collection knows both'
);
set local quote_all_identifiers = on;
do $$
begin
    perform rag.put(
        'Die Häuser am See. ' || pg_temp.paragraph('alpha'), 'h', collection => 'small',
        language => 'pg_catalog.german'
    );
end
$$;
reset quote_all_identifiers;
select is(
    (select d.language from rag.documents as d where d.uri = 'h'), 'german',
    'a language has one name, whatever the session does to identifiers'
);
do $$ begin perform rag.put('Las casas del lago', 'c', collection => 'cuentos'); end $$;
select results_eq(
    $$ select s.uri from rag.search('la casa', collection => 'cuentos') as s $$,
    $$ values ('c') $$,
    'a document is in the language of its collection'
);

-- Other chunking --------------------------------------------------------------------------------

do $$
begin
    perform rag.put(
        pg_temp.text_of('one', 'two', 'three', 'four'), 'k', collection => 'small'
    );
    perform pg_temp.embed();
end
$$;
truncate before;
insert into before select * from pg_temp.chunks_of('k', 'small');
do $$
begin
    perform rag.put(
        pg_temp.text_of('one', 'two', 'three', 'four'), 'k', collection => 'small',
        chunk_size => 400
    );
end
$$;
select is(
    (select d.chunking from rag.documents as d where d.uri = 'k'),
    '{"strategy": "recursive", "size": 400, "overlap": 0}', 'another size is kept with the document'
);
select is((select count(*)::int from pg_temp.chunks_of('k', 'small')), 2, 'and cuts it anew');
select is_empty('select * from faults', 'nothing is left of the old chunks');
do $$
begin
    perform rag.put(pg_temp.text_of('one', 'two', 'three', 'four'), 'k', collection => 'small');
end
$$;
select is(
    (select count(*)::int from pg_temp.chunks_of('k', 'small')), 4,
    'not said again, the collection''s size holds'
);

-- Headings --------------------------------------------------------------------------------------

do $$
begin
    perform rag.put(
        E'# Zoology\n\n## Wombats\n\n' || pg_temp.paragraph('burrow') || E'\n\n## Numbats\n\n'
        || pg_temp.paragraph('termite'),
        'zoo.md', strategy => 'markdown', chunk_size => 200, chunk_overlap => 0
    );
end
$$;
select results_eq(
    $$ select s.content ~ 'burrow', s.heading_path from rag.search('wombats') as s limit 1 $$,
    $$ values (true, array['Zoology', 'Wombats']) $$,
    'a chunk is found by the heading above it'
);
select ok(
    (
        select c.lexemes @@ 'wombat:b'
        from pg_temp.chunks_of('zoo.md') as c
        where c.lexemes @@ 'burrow'
    ),
    'where headings weigh B'
);
do $$
begin
    perform pg_temp.embed();
    perform rag.put(
        E'# Botany\n\n## Wombats\n\n' || pg_temp.paragraph('burrow') || E'\n\n## Numbats\n\n'
        || pg_temp.paragraph('termite'),
        'zoo.md', strategy => 'markdown', chunk_size => 200, chunk_overlap => 0
    );
end
$$;
select results_eq(
    $$ select s.heading_path[1] from rag.search('termite') as s limit 1 $$,
    $$ values ('Botany') $$,
    'another heading above reaches the chunks below'
);
select is_empty('select * from faults', 'nothing is at odds with headings');

-- Identity by content ---------------------------------------------------------------------------

select is(
    rag.put('No uri at all'), rag.put('No uri at all', title => 'x'),
    'without a uri the content is the identity'
);
select isnt(
    rag.put('No uri at all'), rag.put('No uri at all!'), 'another content, another document'
);
select is(
    (select d.uri from rag.documents as d where d.content = 'No uri at all'),
    'sha256:' || encode(sha256('No uri at all'), 'hex'), 'whose uri says so'
);
select ok(rag.delete('sha256:' || encode(sha256('No uri at all'), 'hex')), 'and deletes it');
select isnt(
    rag.put('same', 'same', collection => 'small'), rag.put('same', 'same', collection => 'other'),
    'a uri is known inside its collection'
);

-- The same text elsewhere -----------------------------------------------------------------------

do $$
begin
    perform rag.put(pg_temp.text_of('kiwi', 'lemon'), 'fruit', collection => 'small');
    perform pg_temp.embed();
    perform rag.put(pg_temp.text_of('lemon', 'mango'), 'more fruit', collection => 'other');
end
$$;
select results_eq(
    $$
        select c.word, c.is_embedded, c.jobs
        from pg_temp.chunks_of('more fruit', 'other') as c
        order by 1
    $$,
    $$ values ('lemon', true, 0::bigint), ('mango', false, 1) $$,
    'the embedding of the same text in another document is used again'
);
do $$
begin
    perform rag.delete('fruit', 'small');
end
$$;
select ok(
    (
        select c.is_embedded
        from pg_temp.chunks_of('more fruit', 'other') as c
        where c.word = 'lemon'
    ),
    'and is not lost with the other document'
);
do $$
begin
    perform rag.set_tenant('globex');
    perform rag.put(pg_temp.text_of('lemon', 'kiwi'), 'fruit', collection => 'small');
end
$$;
select results_eq(
    $$ select c.is_embedded, c.jobs from pg_temp.chunks_of('fruit', 'small') as c $$,
    $$ values (false, 1::bigint), (false, 1) $$,
    'another tenant''s embedding is never used'
);
do $$
begin
    perform rag.set_tenant('acme');
    perform rag.put_many('[{"content": "twins", "uri": "t1"}, {"content": "twins", "uri": "t2"}]');
end
$$;
select is(
    (select count(*)::int from rag.jobs as j join rag.chunks as c using (tenant_id, chunk_id)
        where c.content = 'twins'),
    2, 'what two documents bring at once is embedded for both'
);
select is_empty('select * from faults', 'nothing is at odds after sharing');

-- Put many --------------------------------------------------------------------------------------

do $$
begin
    perform rag.put('two', 'm2');
    perform rag.put('three', 'm3', 'A title');
end
$$;
create temporary table told as
select *
from rag.put_many(
    '[{"content": "nine", "uri": "m9"}, {"content": "two", "uri": "m2"},
      {"content": "one", "uri": "m1", "title": "T", "metadata": {"a": 1}},
      {"content": "three!", "uri": "m3"}, {"content": "nine", "uri": "m9"},
      {"content": "loose"}, {"content": "null", "uri": null, "title": null, "metadata": null}]'
) with ordinality as m (uri, document_id, chunks, status, n);
select results_eq(
    $$
        select m.uri, m.status, m.chunks, m.document_id = d.document_id
        from told as m
        left join rag.documents as d
            on d.uri = m.uri and d.tenant_id = (select c.tenant_id from rag._context() as c)
        order by m.n
    $$,
    $$
        values
        ('m9', 'inserted', 1, true), ('m2', 'unchanged', 1, true), ('m1', 'inserted', 1, true),
        ('m3', 'updated', 1, true), ('m9', 'inserted', 1, true),
        ('sha256:' || encode(sha256('loose'), 'hex'), 'inserted', 1, true),
        ('sha256:' || encode(sha256('null'), 'hex'), 'inserted', 1, true)
    $$,
    'put_many tells of each document in the order of the array, twice of one that is there twice'
);
select results_eq(
    $$
        select d.title, d.metadata
        from rag.documents as d
        where d.uri in ('m1', 'm3')
        order by d.uri
    $$,
    $$ values ('T', '{"a": 1}'::jsonb), (null, '{}') $$,
    'with title and metadata of each'
);
select is_empty($$ select * from rag.put_many('[]') $$, 'of nothing nothing is told');
select results_eq(
    $$
        select j.priority::int
        from rag.jobs as j
        join rag.chunks as c using (tenant_id, chunk_id)
        where c.content in ('two', 'one')
        order by c.content desc
    $$,
    $$ values (0), (10) $$,
    'who puts one document waits for less than a bulk load'
);
select is_empty('select * from faults', 'nothing is at odds after many');

-- What cannot be put ----------------------------------------------------------------------------

create temporary table counted as
select
    (select count(*) from rag.documents) as documents, (select count(*) from rag.chunks) as chunks,
    (select count(*) from rag.jobs) as jobs,
    (select sum(cardinality(n.languages)) from rag.collections as n) as languages;

select throws_ok('select rag.put(' || b.arguments || ')', b.state, null, 'put refuses ' || b.what)
from (values
    ('null', '22023', 'null'),
    ('''''', '22023', 'the empty text'),
    ('E'' \t\r\n''', '22023', 'white space'),
    ('E''\u00a0\u3000\u2028''', '22023', 'the white space of other scripts'),
    ('E''\u001c\u001d\u0085''', '22023', 'separators, which rag.chunk takes for white space'),
    ('repeat('' '', 2000)', '22023', 'much white space'),
    ('''x'', uri => ''''', '22023', 'an empty uri'),
    ('''x'', uri => repeat(''é'', 1001)', '22023', 'a uri of 2,002 bytes'),
    ('''x'', title => repeat(''x '', 1001)', '22023', 'a title of 2,002 bytes'),
    ('''x'', metadata => ''[]''', '22023', 'metadata that are an array'),
    ('''x'', metadata => ''"a"''', '22023', 'metadata that are a string'),
    ('''x'', metadata => ''null''', '22023', 'metadata that are the null of JSON'),
    (
        '''x'', metadata => jsonb_build_object(''a'', repeat(''x'', 100001))', '22023',
        'metadata of 100 kB, which each chunk would repeat'
    ),
    ('''x'', collection => ''missing''', 'RG003', 'an unknown collection'),
    ('''x'', collection => ''SMALL''', 'RG003', 'a collection in upper case'),
    ('''x'', collection => null', 'RG003', 'no collection'),
    ('''x'', strategy => ''missing''', '22023', 'an unknown strategy'),
    ('''x'', strategy => ''''', '22023', 'an empty strategy'),
    ('''x'', chunk_size => 0', '22023', 'a size of 0'),
    ('''x'', chunk_size => -5', '22023', 'a negative size'),
    ('''x'', chunk_size => 2147483647', '22023', 'a size beyond measure'),
    ('''x'', chunk_overlap => -1', '22023', 'a negative overlap'),
    ('''x'', chunk_size => 200, chunk_overlap => 200', '22023', 'an overlap as large as the chunk'),
    ('''x'', language => ''klingon''', '22023', 'an unknown language'),
    ('''x'', language => ''''', '22023', 'an empty language'),
    ('''x'', language => ''-''', '22023', 'the language -, a regconfig of nothing'),
    ('''x'', language => ''1''', '22023', 'the language 1, the oid of nothing'),
    ('''x'', language => ''99999999999''', '22023', 'a number that is no oid'),
    ('''x'', language => ''a.b.c''', '22023', 'a language of another database'),
    ('''x'', language => ''a.b.c.d''', '22023', 'a language with too many dots'),
    ('''x'', language => ''missing.english''', '22023', 'a language of no schema'),
    ('''x'', language => ''"english''', '22023', 'a language with half a quote'),
    ('repeat(''abcd '', 22000000)', 'RG004', '110 MB')
) as b (arguments, state, what);

select throws_ok(
    format('select * from rag.put_many(%s)', b.arguments), b.state, null,
    'put_many refuses ' || b.what
)
from (values
    ('null', '22023', 'null'),
    ('''null''', '22023', 'the null of JSON'),
    ('''{"content": "x"}''', '22023', 'an object'),
    ('''"x"''', '22023', 'a string'),
    ('''[["x"]]''', '22023', 'an array of arrays'),
    ('''[null]''', '22023', 'an array of nulls'),
    ('''[{}]''', '22023', 'a document without content'),
    ('''[{"content": null}]''', '22023', 'content null'),
    ('''[{"content": 5}]''', '22023', 'content that is a number'),
    ('''[{"content": ["x"]}]''', '22023', 'content that is an array'),
    ('''[{"content": "x", "uri": 5}]''', '22023', 'a uri that is a number'),
    ('''[{"content": "x", "uri": ""}]''', '22023', 'an empty uri'),
    ('''[{"content": "x", "title": {}}]''', '22023', 'a title that is an object'),
    (
        'jsonb_build_array(jsonb_build_object(''content'', ''x'', ''title'', repeat(''x'', 2001)))',
        '22023', 'a title of 2,001 bytes'
    ),
    ('''[{"content": "x", "metadata": []}]''', '22023', 'metadata that are an array'),
    ('''[{"content": "x", "metadata": "{}"}]''', '22023', 'metadata that are a string'),
    ('''[{"content": "x", "url": "x"}]''', '22023', 'a key that it does not know'),
    ('''[{"content": "x", "Uri": "x"}]''', '22023', 'a key in upper case'),
    (
        '''[{"content": "x", "uri": "u"}, {"content": "y", "uri": "u"}]''', '22023',
        'two documents of one uri'
    ),
    (
        '''[{"content": "x", "uri": "u"}, {"content": "x", "uri": "u", "title": "t"}]''', '22023',
        'two that differ by the title alone'
    ),
    (
        '''[{"content": "x"}, {"content": "y"}, {"content": " "}]''', '22023',
        'all, when the last is empty'
    ),
    ('''[{"content": "x"}]'', ''missing''', 'RG003', 'an unknown collection'),
    ('''[{"content": "x"}]'', language => ''german'', strategy => ''missing''', '22023',
        'an unknown strategy'),
    ('''[{"content": "a\u0000b"}]''', '22P05', 'NUL, as JSON itself does'),
    ('''[{"content": "x", "metadata": {"a": "\u0000"}}]''', '22P05', 'NUL in metadata'),
    ('''[{"content": "\ud800"}]''', '22P02', 'half a surrogate pair')
) as b (arguments, state, what);

select results_eq(
    $$
        select
            (select count(*) from rag.documents), (select count(*) from rag.chunks),
            (select count(*) from rag.jobs),
            (select sum(cardinality(n.languages)) from rag.collections as n)
    $$,
    'select * from counted', 'of all that was refused nothing was stored'
);

-- What can --------------------------------------------------------------------------------------

create temporary table odd as
select o.*, rag.put(o.content, o.uri) as id
from (values
    ('a', 'one letter'),
    ('?', 'no word'),
    ('the', 'stop word'),
    (E'\u200b', 'a space without width'),
    (E'\ufeff', 'a byte order mark'),
    ('# ', 'a heading without words'),
    ('# Only a heading', 'a heading without text'),
    (E'---\n---\n', 'rules'),
    (E'```\n```', 'empty code'),
    (E'\r\n\r\nwindows\r\n\r\nlines\r\n', 'windows lines'),
    ('👩‍👩‍👧‍👦🇩🇪 é naïve ' || repeat('🦊', 3000), 'emoji'),
    (repeat('x', 200000), 'a word of 200 kB'),
    (repeat('字', 5000), 'no spaces'),
    (repeat(E'\n', 5000) || 'deep' || repeat(' ', 5000), 'much white space'),
    (E'\u0007\u001b[31mred\u0001', 'control characters'),
    ('%s %I %L % \ '' " $$ $1 ; drop', 'what SQL and format know'),
    ('x', repeat(md5('incompressible'), 62) || '0123456789abcdef'),
    ('x', '  ; drop table "rag".documents -- ''é 🦊')
) as o (content, uri);
select is((select count(*)::int from odd), 18, 'odd texts and uris are taken');
select is_empty(
    'select o.uri from odd as o join rag.documents as d on d.document_id = o.id
    where d.content <> o.content or d.uri <> o.uri',
    'as they are'
);
select is_empty('select * from faults', 'and nothing is at odds with them');
select ok(
    (select bool_and(s.uri is not null) from rag.search(
        'the ? x 👩‍👩‍👧‍👦 %s $1 ''" \ -- deep', 100) as s),
    'nor in a search for them'
);

-- Collections -----------------------------------------------------------------------------------

select throws_ok(
    format('select rag.create_collection(%s)', b.arguments), b.state, null,
    'no collection: ' || b.what
)
from (values
    ('null', '22023', 'null'),
    ('''''', '22023', 'the empty name'),
    (''' x''', '22023', 'a space before'),
    ('repeat(''x'', 201)', '22023', '201 characters'),
    ('''small''', '42710', 'one that is there'),
    ('''y'', ''missing''', '22023', 'an unknown strategy'),
    ('''y'', preset => ''poem''', '22023', 'an unknown preset'),
    ('''y'', min_chunk_size => 801', '22023', 'a minimum above the size'),
    ('''y'', separators => array[''x'']', '22023', 'separators for Markdown'),
    ('''y'', chunk_size => 0', '22023', 'size 0'),
    ('''y'', language => null', '22023', 'language null'),
    ('''y'', language => ''-''', '22023', 'the language -')
) as b (arguments, state, what);

-- Delete ----------------------------------------------------------------------------------------

select throws_ok($$ select rag.delete('a.md', 'missing') $$, 'RG003', null, 'of no collection');
select is(rag.delete('missing'), false, 'what is not there is not deleted');
select is(rag.delete(null), false, 'nor is null');
select is(rag.delete('same', 'other'), true, 'a document is deleted from its collection');
select results_eq(
    $$ select d.uri from rag.documents as d where d.content = 'same' $$, $$ values ('same') $$,
    'and stays in the other one'
);
do $$ begin perform pg_temp.embed(); end $$;
select is_empty(
    $$
        select d.uri
        from rag.documents as d
        join rag.collections as n using (tenant_id, collection_id)
        where
            d.tenant_id = (select c.tenant_id from rag._context() as c)
            and not rag.delete(d.uri, n.name)
    $$,
    'everything is deleted'
);
select is_empty(
    $$
        select c.tenant_id from rag.documents as c union all select c.tenant_id from rag.chunks as c
        union all select c.tenant_id from rag.lexemes as c
        union all select c.tenant_id from rag.embeddings as c
        union all select c.tenant_id from rag.jobs as c
        except all
        select t.tenant_id from rag.tenants as t, generate_series(1, 100) where t.name = 'globex'
    $$,
    'and nothing of it is left'
);
select is(
    (select count(*)::int from rag.documents), 1, 'but for the document of the other tenant'
);
select is_empty('select * from faults', 'where nothing is at odds');

select * from finish();
rollback;
