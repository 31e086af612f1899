-- Records of finished uploads and runs, and what rag.status says of files and of the purge.

begin;

select plan(13);

create function pg_temp.state(item text)
    returns text
    language sql
return (
    select concat_ws(': ', s.value, left(s.warning, 24)) from rag.status() as s where s.item = $1
);

do $$
begin
    perform rag.set_tenant('default');
    perform rag.upload('one.txt', 'one');
    perform rag.upload('two.txt', 'two');
    perform rag.upload('three.txt', 'three');
    perform rag.begin_run('sync', 'a folder');
    perform rag.begin_run('sync', 'another folder');
end
$$;

select is(pg_temp.state('files waiting'), '3', 'files that wait are told of');
update rag.uploads set due_at = now() - interval '5 minutes' where filename = 'one.txt';
select is(
    pg_temp.state('files waiting'), '3: the oldest has waited fo', 'with a warning when late'
);
do $$ begin perform rag.suspend_tenant('default', 'a test'); end $$;
select is(pg_temp.state('files waiting'), '0', 'those of a suspended tenant are not late');
do $$ begin perform rag.resume_tenant('default'); end $$;

update rag.uploads
set state = 'failed', error = 'no', finished_at = now() - interval '100 days'
where filename = 'one.txt';
update rag.uploads
set state = 'completed', body = null, finished_at = now() - interval '100 days'
where filename = 'two.txt';
update rag.runs
set state = 'completed', finished_at = now() - interval '100 days'
where source = 'a folder';
select is(pg_temp.state('files failed'), '1: see rag.uploads; rag.ret', 'failures are told of');

select throws_ok(
    $$ select rag.set_record_retention('0') $$, '22023', null, 'records are kept for a time'
);
do $$ begin perform rag.set_record_retention(null); end $$;
select is(rag.purge(), 0::bigint, 'or for ever');
do $$ begin perform rag.set_record_retention('90 days'); end $$;
select results_eq(
    $$ select reason from rag.maintenance_plan() where action = 'purge' $$,
    array['0 have expired, 0 past versions are due, 1 tenants have old records of uploads or runs'],
    'maintenance plans to purge old ones'
);
select is(rag.purge_all(1), 2::bigint, 'and the purge deletes them');
select results_eq(
    'select filename, state from rag.uploads order by upload_id',
    $$ values ('one.txt', 'failed'), ('three.txt', 'pending') $$,
    'but no file that failed or waits'
);
select results_eq(
    'select source, state from rag.runs', $$ values ('another folder', 'running') $$,
    'and no run that is on'
);
select is(rag.purge(), 0::bigint, 'once');

do $$
begin
    perform rag.put('Soon gone.', 'soon', lifetime => interval '1 hour');
end
$$;
select is(pg_temp.state('to be purged'), '0', 'what is to expire is not to be purged');
update rag.documents set expires_at = now() - interval '3 days' where uri = 'soon';
select is(
    left(pg_temp.state('to be purged'), 8), '1: since', 'what has expired long ago is, with a word'
);

select finish();
rollback;
