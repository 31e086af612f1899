-- The doorbell: an idle worker is woken at commit, a busy one is left alone.

create or replace function rag._doorbell()
    returns int
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- 'ragd' in ASCII: the first key of our advisory locks, out of the way of others'.
    select 1918986084
$$;

comment on function rag._doorbell() is 'The class of the advisory lock that an idle worker holds.';

create or replace function rag.worker_idle()
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    perform rag.worker_awake();
    -- Of several idle workers one holds it; all of them hear the bell. It dies with the session,
    -- so a killed worker never leaves writers ringing for nobody. A writer's probe holds it for
    -- microseconds: try again rather than wait behind another idle worker.
    for i in 1..10 loop
        exit when pg_try_advisory_lock(rag._doorbell(), 0);
    end loop;
end
$$;

comment on function rag.worker_idle() is
    'Ask to be woken: from now on a put sends NOTIFY rag_jobs. Call it on the LISTEN connection.';

create or replace function rag.worker_awake()
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    perform pg_advisory_unlock(l.classid::int, l.objid::int)
    from pg_locks as l
    where
        l.locktype = 'advisory'
        and l.pid = pg_backend_pid()
        and l.database = (select d.oid from pg_database as d where d.datname = current_database())
        and l.classid::int = rag._doorbell()
        and l.objsubid = 2
        and l.mode = 'ExclusiveLock'
        and l.granted;
end
$$;

comment on function rag.worker_awake() is
    'Ask not to be woken any more: the worker is at work and looks for jobs by itself.';

create or replace function rag._ring()
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- NOTIFY takes a lock of the whole cluster at commit (5,415 puts a second became 455 with 16
    -- clients), so it is sent only while somebody is idle: he then holds this lock exclusively.
    begin
        if pg_try_advisory_xact_lock_shared(rag._doorbell(), 0) then
            -- The way out of the subtransaction, which lets go of the lock at once. Between lock
            -- and unlock of a session lock a cancelled put (27 of 100 in a test that aimed there)
            -- left it behind, and nobody could be idle again while that session lived.
            raise sqlstate 'RG000';
        end if;
    exception
        when sqlstate 'RG000' then
            return;
    end;
    perform pg_notify('rag_jobs', '');
end
$$;

comment on function rag._ring() is 'Wake an idle worker at commit, if there is one.';
