-- Uploads and runs, as far as one session can see; with workers and files in tests/test_uploads.py.

begin;
select plan(66);

select rag.set_tenant('default');

-- Handing over ----------------------------------------------------------------------------------

select is(pg_typeof(rag.upload('a.pdf', 'abc'))::text, 'bigint', 'an upload has an id');
select is(
    (select row(u.state, u.uri, u.bytes, u.error)::text from rag.uploads as u),
    '(pending,a.pdf,3,)',
    'it waits, under the name of the file'
);
select throws_ok(
    format('select rag.upload(%L, %s)', n.name, n.body), '22023', null, 'refused: ' || n.what
)
from (values
    ('', '''x''', 'no name'), (null, '''x''', 'null as name'), (' ', '''x''', 'a blank name'),
    (repeat('x', 256), '''x''', 'a name of 256 characters'), ('a', '''''', 'an empty body'),
    ('a', 'null', 'null as body')
) as n (name, body, what);
select throws_ok(
    $$ select rag.upload('big.pdf', convert_to(repeat('x', 50000001), 'UTF8')) $$,
    'RG004', 'the file is too large', 'more than 50 MB'
);
select throws_ok(
    $$ select rag.upload('a', 'x', uri => repeat('x', 2001)) $$, '22023', 'invalid uri', 'long uri'
);
select throws_ok(
    $$ select rag.upload('a', 'x', metadata => '[]') $$, '22023', 'metadata is not an object',
    'metadata that are no object'
);
select throws_ok(
    $$ select rag.upload('a', 'x', collection => 'none') $$, 'RG003', null, 'an unknown collection'
);
select throws_ok(
    $$ select rag.upload('a', 'x', language => 'klingon') $$, null, null, 'an unknown language'
);

-- Claims ----------------------------------------------------------------------------------------

select throws_ok(
    $$ select * from rag.claim_uploads('w', 0) $$, '22023', 'invalid batch', 'a batch of none'
);
select throws_ok(
    $$ select * from rag.claim_uploads('w', 1, '0') $$, '22023', 'invalid lease', 'no lease'
);
create temporary table claim as select * from rag.claim_uploads('w');
select is(
    (
        select row(c.filename, c.uri, convert_from(c.body, 'UTF8'), c.attempts)::text
        from claim as c
    ),
    '(a.pdf,a.pdf,abc,1)',
    'a worker gets the file'
);
select is_empty($$ select * from rag.claim_uploads('v') $$, 'and no other one');
select is(
    (select rag.extend_upload(c.lease_token, '5 minutes') from claim as c), true,
    'he may hold it for longer'
);
select is(rag.extend_upload(gen_random_uuid()), false, 'with his token only');
select is(rag.fail_upload(gen_random_uuid(), 'x'), false, 'nor can another one fail it');
select is(
    rag.complete_upload(gen_random_uuid(), 'x', 'x', '{}'), null::bigint, 'nor complete it'
);
select is(
    (select rag.fail_upload(c.lease_token, 'the extractor is away') from claim as c), true,
    'an error puts it back'
);
select is(
    (select row(u.state, u.error, u.due_at > now())::text from rag.uploads as u),
    '(pending,"the extractor is away",t)',
    'with the error, for later'
);
select is_empty($$ select * from rag.claim_uploads('w') $$, 'so it is not due');
update rag.uploads set due_at = now() - interval '1 second';
truncate claim;
insert into claim select * from rag.claim_uploads('w');
select is((select c.attempts from claim as c), 2, 'it is the second attempt');
select is(
    (select rag.release_upload(c.lease_token) from claim as c), true, 'he gives it back'
);
select is((select u.attempts from rag.uploads as u), 1::smallint, 'which is no attempt');

-- Lost five times -------------------------------------------------------------------------------

do $$
begin
    for i in 1..4 loop
        perform from rag.claim_uploads('w');
        update rag.uploads set due_at = now() - interval '1 second';
    end loop;
end
$$;
select is_empty($$ select * from rag.claim_uploads('w') $$, 'whoever kills five workers is out');
select is(
    (select u.state || ': ' || u.error from rag.uploads as u),
    'failed: no worker finished it in 5 attempts; the last error was: the extractor is away',
    'and says so'
);
select is(rag.retry_upload((select u.upload_id from rag.uploads as u)), true, 'until tried again');
truncate claim;
insert into claim select * from rag.claim_uploads('w');

-- Completion ------------------------------------------------------------------------------------

select throws_ok(
    $$ select rag.complete_upload(c.lease_token, ' ', null, '{}') from claim as c $$,
    '22023', 'content is empty', 'no text is no document'
);
select isnt(
    (
        select rag.complete_upload(
            c.lease_token, repeat('Words of the first page. ', 40) || 'Anvils.', 'Title',
            '{"page_starts": [0, 1000], "author": "A"}', 'english'
        )
        from claim as c
    ),
    null::bigint, 'it becomes a document'
);
select is(
    (
        select row(u.state, u.body, d.title)::text
        from rag.uploads as u
        join rag.documents as d using (tenant_id, document_id)
    ),
    '(completed,,Title)',
    'and the file goes'
);
select results_eq(
    $$ select c.metadata from rag.chunks as c order by c.ordinal $$,
    $$ values ('{"author": "A", "page": 1}'::jsonb), ('{"author": "A", "page": 1}') $$,
    'passages know their page, by where they begin'
);
select is(
    rag._chunk_metadata('{"page_starts": [0, 10, 10, 20], "a": 1}', n.place),
    jsonb_build_object('a', 1, 'page', n.page), 'page of offset ' || n.place
)
from (values (0, 1), (9, 1), (10, 3), (19, 3), (20, 4), (1000000, 4)) as n (place, page);
select is(
    rag._chunk_metadata(m.given, 5), m.given, 'metadata of another kind stay: ' || m.given::text
)
from (values
    ('{"page_starts": 7}'::jsonb), ('{"page_starts": []}'), ('{"page_starts": ["x", "y"]}'),
    ('{"page_starts": [0, "y"]}')
) as m (given);

-- Replaced --------------------------------------------------------------------------------------

do $$ begin perform rag.upload('b.md', 'old'); end $$;
truncate claim;
insert into claim select * from rag.claim_uploads('w');
do $$ begin perform rag.upload('b.md', 'new'); end $$;
select is(
    (select rag.complete_upload(c.lease_token, 'old', null, '{}') from claim as c), null::bigint,
    'a later file of the same uri came'
);
select results_eq(
    $$ select u.state || coalesce(': ' || length(u.body), '') from rag.uploads as u
    where u.uri = 'b.md' order by u.upload_id $$,
    $$ values ('replaced'), ('pending: 3') $$,
    'so this one is replaced, and its bytes go'
);
select is((select p.failed from rag.upload_progress() as p), 0::bigint, 'which is no failure');
select is(
    (select rag.retry_upload(c.upload_id) from claim as c), false, 'and nothing to try again'
);

-- Suspended -------------------------------------------------------------------------------------

truncate claim;
insert into claim select * from rag.claim_uploads('w');
do $$ begin perform rag.suspend_tenant('default'); end $$;
select is(
    (select rag.complete_upload(c.lease_token, 'new', null, '{}') from claim as c), null::bigint,
    'for a suspended tenant nothing is put'
);
select is(
    (
        select row(u.state, u.attempts, u.lease_token, length(u.body))::text
        from rag.uploads as u
        join claim as c using (upload_id)
    ),
    '(pending,0,,3)', 'and the file waits, as if nobody had read it'
);
update rag.uploads set due_at = now() - interval '1 second' where state = 'pending';
select is_empty($$ select * from rag.claim_uploads('w') $$, 'nobody reads it');
do $$ begin perform rag.resume_tenant('default'); end $$;
truncate claim;
insert into claim select * from rag.claim_uploads('w');
select isnt(
    (select rag.complete_upload(c.lease_token, 'new', null, '{}') from claim as c), null::bigint,
    'until the tenant is resumed'
);

-- Quotas ----------------------------------------------------------------------------------------

do $$
begin
    perform rag.set_quota('default', documents => 3, bytes => u.bytes + 10)
    from rag.usage() as u
    where u.tenant = 'default';
    perform rag.upload('c.md', '12345678');
end
$$;
select throws_ok(
    $$ select rag.upload('c.md', '123') $$, 'RG020', 'the quota of bytes is reached',
    'files that wait count as bytes'
);
select throws_ok(
    $$ select rag.upload('d.md', '1') $$, 'RG020', 'the quota of documents is reached',
    'and as documents'
);
select lives_ok($$ select rag.upload('c.md', '1') $$, 'one that replaces is none');
do $$ begin perform rag.set_quota('default', puts_per_minute => 2); end $$;
do $$ begin perform rag.upload('e.md', '1'), rag.upload('f.md', '1'); end $$;
select throws_ok(
    $$ select rag.upload('g.md', '1') $$, 'RG021', 'too many puts in a minute', 'an upload is a put'
);
delete from rag.uploads where uri = 'c.md';
update rag.uploads set due_at = now() - interval '1 second' where state = 'pending';
truncate claim;
insert into claim select * from rag.claim_uploads('w');
select isnt(
    (select rag.complete_upload(c.lease_token, 'x', null, '{}') from claim as c), null::bigint,
    'that is counted once'
);
do $$ begin perform rag.set_quota('default'); end $$;

-- Similar passages ------------------------------------------------------------------------------

select is(rag.cosine_similarity('[3,0]', '[5,0]'), 1::double precision, 'the same direction');
select is(rag.cosine_similarity('[1,0]', '[0,1]'), 0::double precision, 'a right angle');
select is(rag.cosine_similarity('[1,0]', '[0,0]'), null, 'a zero vector is like nothing');
select throws_ok(
    $$ select * from rag.find_similar(-1) $$, 'P0002', null, 'no chunk, nothing like it'
);

select throws_ok(
    format('select * from rag.find_similar(-1, %s)', n.k), '22023', 'invalid k', 'k is ' || n.k
)
from (values ('null'), ('-5'), ('0'), ('1000')) as n (k);
select throws_ok(
    $$ select * from rag.find_similar(-1, 999) $$, 'P0002', null, 'k may be 999'
);

select * from finish();
rollback;
