-- Maintenance: how the partitions are, what should be done about it, and doing it.

create or replace function rag._hnsw_bytes(dimensions int)
    returns double precision
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
-- Of one row in a new index with m = 24: the element (80 bytes and its vector), its 48 neighbours
-- of 6 bytes, a 24th of them more for the upper layers; as many as fit into a page.
return 8192 / greatest(
    1.0,
    floor(8152.0 / (8 + 8 * ceil((80 + 2 * dimensions) / 8.0) + 8 * ceil((4 + 48 * 6) / 8.0)))
) + 6;

comment on function rag._hnsw_bytes(int) is
    'What a vector takes in an HNSW index that has just been built, in bytes.';

create or replace function rag._tenant_chunks()
    returns table (tenant_id int, partition_id int, chunks bigint)
    language sql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- By the statistics of BM25, which are exact; counting would read every partition.
    select t.tenant_id, t.partition_id, s.chunks
    from rag.tenants as t
    cross join lateral (
        select coalesce(sum(x.chunks), 0)::bigint as chunks
        from rag.lexeme_statistics as x
        where x.tenant_id = t.tenant_id and x.lexeme = ''
    ) as s
$$;

comment on function rag._tenant_chunks() is 'How many chunks each tenant has.';

create or replace function rag._hnsw_indexes()
    returns table (
        partition_id int,
        model_id int,
        index regclass,
        rows bigint,
        bytes bigint,
        is_valid boolean,
        bloat real
    )
    language sql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        o.partition_id, o.model_id, o.index::regclass, coalesce(n.chunks, 0), o.bytes, o.is_valid,
        greatest(
            0, 1 - coalesce(n.chunks, 0) * rag._hnsw_bytes(m.dimensions) / nullif(o.bytes, 0)
        )::real
    from (
        select
            (regexp_match(c.relname, '_p(\d+)$'))[1]::int as partition_id,
            (regexp_match(c.relname, '^embeddings_m(\d+)'))[1]::int as model_id,
            x.indexrelid as index,
            pg_relation_size(x.indexrelid) as bytes,
            x.indisvalid as is_valid
        from pg_class as c
        join pg_index as x on x.indrelid = c.oid
        join pg_class as i on i.oid = x.indexrelid
        join pg_am as a on a.oid = i.relam and a.amname = 'hnsw'
        where
            c.relnamespace = 'rag_data'::regnamespace
            and c.relkind = 'r'
            and c.relname ~ '^embeddings_m\d+_p\d+$'
    ) as o
    join rag.models as m on m.model_id = o.model_id
    -- Not what the server counts: rows that a move inserts are counted twice, once by its analyze.
    left join (
        select c.partition_id, sum(c.chunks)::bigint as chunks
        from rag._tenant_chunks() as c
        group by c.partition_id
    ) as n on n.partition_id = o.partition_id
$$;

comment on function rag._hnsw_indexes() is
    'Every HNSW index: how many rows it is for, its size, and the share that a new one would save.';

create or replace function rag._unknown_facets(partition_id int, model_id int)
    returns bigint
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- By the index of facets: all that are unknown are one posting list.
    set enable_seqscan = off
as $$
declare
    v_unknown bigint;
begin
    execute format(
        'select count(*) from (select from rag_data.embeddings_m%1$s_p%2$s as e '
        'join rag_data.lexemes_p%2$s as l on l.tenant_id = e.tenant_id '
        'and l.chunk_id = e.chunk_id and l.facets <> ''{}'' '
        'where e.tenant_id in ('
        'select t.tenant_id from rag.tenants as t where t.partition_id = $1) '
        'and e.facets = ''{0}'' limit 1001) as u',
        _unknown_facets.model_id, _unknown_facets.partition_id
    )
    into v_unknown using _unknown_facets.partition_id;
    return v_unknown;
end
$$;

comment on function rag._unknown_facets(int, int) is
    'How many embeddings in a partition of a tenant''s own have no facets though their passages '
    'do; 1,001 stands for more.';

create or replace function rag.partition_report()
    returns table (
        partition_id int,
        kind text,
        tenants bigint,
        chunks bigint,
        dead_rows bigint,
        table_bytes bigint,
        index_bytes bigint,
        hnsw jsonb,
        bloat real,
        invalid_indexes bigint,
        empty_since timestamptz
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
begin
    return query
    with
    tables as materialized (
        select
            (regexp_match(c.relname, '_p(\d+)$'))[1]::int as partition_id,
            pg_stat_get_dead_tuples(c.oid) as dead_rows,
            pg_table_size(c.oid) as table_bytes,
            pg_indexes_size(c.oid) as index_bytes,
            (
                select count(*)
                from pg_index as x
                where x.indrelid = c.oid and not (x.indisvalid and x.indisready)
            ) as invalid_indexes
        from pg_class as c
        where
            c.relnamespace = 'rag_data'::regnamespace
            and c.relkind = 'r'
            and c.relname ~ '^(chunks|lexemes|embeddings_m\d+)_p\d+$'
    ),
    sizes as materialized (
        select
            t.partition_id,
            sum(t.dead_rows)::bigint as dead_rows,
            sum(t.table_bytes)::bigint as table_bytes,
            sum(t.index_bytes)::bigint as index_bytes,
            sum(t.invalid_indexes)::bigint as invalid_indexes
        from tables as t
        group by t.partition_id
    ),
    indexes as materialized (
        select
            x.partition_id,
            jsonb_agg(
                jsonb_build_object(
                    'model', m.name, 'index', x.index, 'rows', x.rows, 'bytes', x.bytes,
                    'valid', x.is_valid, 'bloat', round(x.bloat::numeric, 2)
                )
                order by m.model_id
            ) as hnsw,
            max(x.bloat) as bloat
        from rag._hnsw_indexes() as x
        join rag.models as m on m.model_id = x.model_id
        group by x.partition_id
    ),
    counts as materialized (
        select c.partition_id, count(*) as tenants, sum(c.chunks)::bigint as chunks
        from rag._tenant_chunks() as c
        group by c.partition_id
    )
    select
        p.partition_id,
        p.kind,
        coalesce(c.tenants, 0),
        coalesce(c.chunks, 0),
        coalesce(s.dead_rows, 0),
        coalesce(s.table_bytes, 0),
        coalesce(s.index_bytes, 0),
        coalesce(x.hnsw, '[]'),
        x.bloat,
        coalesce(s.invalid_indexes, 0),
        p.empty_since
    from rag.partitions as p
    left join counts as c on c.partition_id = p.partition_id
    left join sizes as s on s.partition_id = p.partition_id
    left join indexes as x on x.partition_id = p.partition_id
    order by p.partition_id;
end
$$;

comment on function rag.partition_report() is
    'Each partition in a row: who is in it, how large it is, and the state of its indexes; bloat '
    'is the share of its HNSW index that a new one would save.';

create or replace function rag._maintenance_plan(
    promote_at int, demote_at int, bloat real, most_partitions int
)
    returns table (action text, subject int, object text, reason text)
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_erased bigint := (select count(*) from rag.erasures as e where e.settled_at is null);
    v_chunks bigint := (select coalesce(sum(c.chunks), 0) from rag._tenant_chunks() as c);
    v_promoted int[];
    v_promoted_chunks bigint[];
    v_roots regclass[];
begin
    -- Before the statistics are folded, which it changes.
    return query
    select
        'purge', null::int, 'rag.documents',
        format('%s have expired, %s past versions are due', e.expired, e.past)
        || case when e.records > 0
            then format(', %s tenants have old records of uploads or runs', e.records) else ''
        end
    from (
        select
            (
                select count(*)
                from rag.documents as d
                where d.expires_at <= statement_timestamp()
            ) as expired,
            (
                select count(*)
                from rag.past_documents as p
                where p.purge_at <= statement_timestamp()
            ) as past,
            (
                select count(*)
                from rag.tenants as t
                where rag._due_records(t.tenant_id)
            ) as records
    ) as e
    where e.expired + e.past + e.records > 0;

    return query
    select 'fold', null::int, 'rag.lexeme_statistics', format('%s rows wait', count(*))
    from rag.tenants as t
    cross join lateral (
        select
        from rag.lexeme_statistics as d
        where d.tenant_id = t.tenant_id and d.lexeme = '' and d.delta_id > 0
        offset 0
    ) as w
    having count(*) > 0;

    return query
    select 'expire', null::int, e.name, format('%s rows are too old', e.rows)
    from (
        select 'rag.query_embeddings' as name, count(*) as rows
        from rag.query_embeddings as q
        where q.expires_at <= clock_timestamp()
        union all
        select 'rag.queries', count(*)
        from rag.queries as q
        where q.created_at < clock_timestamp() - interval '1 hour'
        union all
        select 'rag.completions', count(*)
        from rag.completions as c
        where c.completed_at < clock_timestamp() - interval '1 hour'
    ) as e
    where e.rows > 0;

    return query
    select 'drop partitions', null::int, null::text, format('%s are of nobody', count(*))
    from rag.partitions as p
    where
        p.kind = 'dedicated'
        and not exists (select from rag.tenants as t where t.partition_id = p.partition_id)
    having count(*) > 0;
    return query
    select 'drop model', null::int, m.name, 'tables of it were left'
    from rag.models as m
    where m.dropped_at is not null
    order by m.model_id;
    return query
    select 'drop table', null::int, c.oid::regclass::text, 'not a partition, nor on the way to one'
    from pg_class as c
    where
        c.relnamespace = 'rag_data'::regnamespace
        and c.relkind = 'r'
        and not c.relispartition
        and not exists (
            select from rag.moves as m where c.relname like '%\_p' || m.partition_id
        )
    order by c.relname;

    return query
    select 'resume', m.tenant_id, null::text, format('a move has been %s since %s', m.stage,
        date_trunc('second', m.started_at))
    from rag.moves as m
    order by m.started_at;
    return query
    select
        'demote', c.tenant_id, null::text,
        format('%s chunks, fewer than %s', c.chunks, _maintenance_plan.demote_at)
    from rag._tenant_chunks() as c
    join rag.partitions as p on p.partition_id = c.partition_id and p.kind = 'dedicated'
    where
        c.chunks < _maintenance_plan.demote_at
        and not exists (select from rag.moves as m where m.tenant_id = c.tenant_id)
    order by c.chunks;
    select
        coalesce(array_agg(n.tenant_id order by n.chunks desc), '{}'),
        array_agg(n.chunks order by n.chunks desc)
    into v_promoted, v_promoted_chunks
    from (
        select c.tenant_id, c.chunks
        from rag._tenant_chunks() as c
        join rag.partitions as p on p.partition_id = c.partition_id and p.kind = 'shared'
        where
            c.chunks >= _maintenance_plan.promote_at
            and not exists (select from rag.moves as m where m.tenant_id = c.tenant_id)
        order by c.chunks desc
        limit greatest(0, _maintenance_plan.most_partitions - (
            select count(*) from rag.partitions as o where o.kind = 'dedicated'
        ))
    ) as n;
    return query
    select
        'promote', g.tenant_id, null::text,
        format('%s chunks, %s or more', g.chunks, _maintenance_plan.promote_at)
    from unnest(v_promoted, v_promoted_chunks) as g (tenant_id, chunks);
    return query
    select
        'rebuild', c.tenant_id, x.indexes,
        case
            when x.lacks_facets then 'its embeddings have no facets yet: filters are slow'
            else format('%s %% of %s are of no row any more', round((100 * x.bloat)::numeric),
                pg_size_pretty(x.bytes))
        end
    from (
        select
            i.partition_id,
            string_agg(i.index::text, ', ' order by i.index::text) as indexes,
            max(i.bloat) as bloat,
            sum(i.bytes) as bytes,
            bool_or(f.lacks_facets) as lacks_facets
        from rag._hnsw_indexes() as i
        cross join lateral (
            select rag._unknown_facets(i.partition_id, i.model_id) > 1000 as lacks_facets
        ) as f
        where i.bloat >= _maintenance_plan.bloat or not i.is_valid or f.lacks_facets
        group by i.partition_id
    ) as x
    join rag._tenant_chunks() as c on c.partition_id = x.partition_id
    where
        c.chunks >= _maintenance_plan.demote_at
        and not exists (select from rag.moves as m where m.tenant_id = c.tenant_id)
    order by x.bytes desc;

    -- Few are filled in where they are, at a millisecond each.
    return query
    select
        'facets', c.tenant_id, 'rag.embeddings', format('%s have none yet', sum(u.unknown))
    from rag._hnsw_indexes() as i
    cross join lateral rag._unknown_facets(i.partition_id, i.model_id) as u (unknown)
    join rag._tenant_chunks() as c on c.partition_id = i.partition_id
    where u.unknown between 1 and 1000
    group by c.tenant_id
    order by c.tenant_id;
    -- Whoever gets a partition of his own gets them with it.
    return query
    select 'post', d.tenant_id, 'rag.postings', d.reason
    from rag._postings_due() as d
    where d.tenant_id <> all(v_promoted)
    union all
    select 'post', g.tenant_id, 'rag.postings', format('none for %s chunks', g.chunks)
    from unnest(v_promoted, v_promoted_chunks) as g (tenant_id, chunks)
    where g.chunks >= rag._least_chunks_with_postings();

    -- Autovacuum never analyzes a partitioned table.
    v_roots := array(
        select r.oid::regclass
        from pg_class as r
        where
            r.oid in ('rag.chunks'::regclass, 'rag.lexemes'::regclass, 'rag.embeddings'::regclass)
            and (
                v_erased > 0
                or abs(
                    case r.relname
                        when 'embeddings' then v_chunks * (
                            select count(*) from rag.models as m where m.dropped_at is null
                        ) - (select count(*) from rag.jobs as j)
                        else v_chunks
                    end - greatest(0, r.reltuples)
                ) > 1000 + 0.2 * greatest(0, r.reltuples)
            )
    );
    return query
    select
        'analyze', null::int, r.oid::regclass::text,
        case
            when v_erased > 0 then 'a tenant was dropped'
            else 'it has another size than when it was analyzed'
        end
    from unnest(v_roots) as r (oid);
    return query
    select
        'analyze', null::int, c.oid::regclass::text,
        case
            when v_erased > 0 and s.changes <= 500 + s.rows / 10 then 'a tenant was dropped'
            else format('%s of its rows have changed', s.changes)
        end
    from pg_class as c
    cross join lateral (
        select
            pg_stat_get_mod_since_analyze(c.oid) as changes,
            pg_stat_get_live_tuples(c.oid) as rows
    ) as s
    where
        c.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace)
        and c.relkind = 'r'
        and (
            s.changes > 500 + s.rows / 10
            or v_erased > 0
            and c.relnamespace = 'rag'::regnamespace
            and exists (
                select
                from pg_attribute as a
                where
                    a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
            )
        )
        -- They are analyzed with it.
        and (
            not c.relispartition
            or not (pg_partition_root(c.oid) = any(v_roots))
        )
    order by c.relname;
    return query
    select 'settle', null::int, 'rag.erasures',
        format('%s tenants were dropped since', v_erased)
    where v_erased > 0;
end
$$;

comment on function rag._maintenance_plan(int, int, real, int) is
    'What rag.maintain would do just now, in its order; tenants by number.';

create or replace function rag._check_maintenance(
    promote_at int, demote_at int, bloat real, most_partitions int
)
    returns void
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if (
        _check_maintenance.demote_at between 0 and _check_maintenance.promote_at * 0.8
        and _check_maintenance.promote_at > 0
        and _check_maintenance.bloat between 0.05 and 1
        and _check_maintenance.most_partitions >= 0
    ) is not true then
        raise exception 'invalid settings of maintenance' using
            errcode = 'invalid_parameter_value',
            detail = format('promote_at is %L, demote_at %L, bloat %L, most_partitions %L.',
                _check_maintenance.promote_at, _check_maintenance.demote_at,
                _check_maintenance.bloat, _check_maintenance.most_partitions),
            hint = 'demote_at is at most 0.8 of promote_at, or tenants would move to and fro; '
            'bloat is a share, 0.05 to 1.';
    end if;
end
$$;

comment on function rag._check_maintenance(int, int, real, int) is
    'Raise the error for thresholds that make no sense.';

create or replace function rag.maintenance_plan(
    promote_at int default 10000,
    demote_at int default 5000,
    bloat real default 0.3,
    most_partitions int default 500
)
    returns table (step int, action text, tenant text, object text, reason text)
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    perform rag._check_maintenance(
        maintenance_plan.promote_at, maintenance_plan.demote_at, maintenance_plan.bloat,
        maintenance_plan.most_partitions
    );
    return query
    select p.n::int, p.action, t.name, p.object, p.reason
    from rag._maintenance_plan(
        maintenance_plan.promote_at, maintenance_plan.demote_at, maintenance_plan.bloat,
        maintenance_plan.most_partitions
    ) with ordinality as p (action, subject, object, reason, n)
    left join rag.tenants as t on t.tenant_id = p.subject
    order by p.n;
end
$$;

comment on function rag.maintenance_plan(int, int, real, int) is
    'What rag.maintain with the same arguments would do just now, and why. Changes nothing.';

create or replace function rag._is_at_work(run rag.maintenance_runs)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- Its session holds a lock whose key nobody else can know, and has a transaction open but for
    -- the moments between two of them.
    for i in 1..3 loop
        if exists (
            select
            from pg_locks as l
            join pg_locks as v
                on v.pid = l.pid and v.locktype = 'virtualxid' and v.mode = 'ExclusiveLock'
            where
                l.locktype = 'advisory'
                and l.granted
                and l.pid = (_is_at_work.run).pid
                and l.pid <> pg_backend_pid()
                and l.classid::bigint = ((_is_at_work.run).lock_key >> 32) & 4294967295
                and l.objid::bigint = (_is_at_work.run).lock_key & 4294967295
        ) then
            return true;
        end if;
        perform pg_sleep(0.02);
    end loop;
    return false;
end
$$;

comment on function rag._is_at_work(rag.maintenance_runs) is
    'Whether a run that is not finished still has a session, another one than this.';

create or replace function rag._begin_maintenance(
    promote_at int, demote_at int, bloat real, most_partitions int
)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_key bigint := ('x' || encode(uuid_send(gen_random_uuid()), 'hex'))::bit(64)::bigint;
    v_other rag.maintenance_runs;
    v_run bigint;
begin
    perform rag._require_fresh_snapshots('maintenance');
    perform rag._check_maintenance(
        _begin_maintenance.promote_at, _begin_maintenance.demote_at, _begin_maintenance.bloat,
        _begin_maintenance.most_partitions
    );
    select r.* into v_other from rag.maintenance_runs as r where r.finished_at is null;
    if found and not rag._is_at_work(v_other) then
        update rag.maintenance_runs as r
        set finished_at = clock_timestamp()
        where r.run_id = v_other.run_id;
        update rag.maintenance_steps as s
        set result = 'broken off', finished_at = clock_timestamp()
        where s.run_id = v_other.run_id and s.finished_at is null;
        if v_other.pid = pg_backend_pid() then
            perform pg_advisory_unlock(v_other.lock_key);
        end if;
    end if;
    insert into rag.maintenance_runs (lock_key, started_by)
    values (v_key, rag._role()::text)
    on conflict do nothing
    returning run_id into v_run;
    if v_run is null then
        raise exception 'another session is maintaining this database' using
            errcode = 'lock_not_available',
            detail = format('Process %s has been at it since %s.', v_other.pid,
                date_trunc('second', v_other.started_at)),
            hint = 'Nothing needs to be done; rag.maintenance_report() tells how far it is.';
    end if;
    perform pg_advisory_lock(v_key);
    insert into rag.maintenance_steps (run_id, step, action, subject, object, reason)
    select v_run, p.n, p.action, p.subject, p.object, p.reason
    from rag._maintenance_plan(
        _begin_maintenance.promote_at, _begin_maintenance.demote_at, _begin_maintenance.bloat,
        _begin_maintenance.most_partitions
    ) with ordinality as p (action, subject, object, reason, n);
    delete from rag.maintenance_runs as r where r.started_at < now() - interval '90 days';
    return v_run;
end
$$;

comment on function rag._begin_maintenance(int, int, real, int) is
    'Note that this session maintains the database, and what there is to do; returns the run. An '
    'error if another session does.';

create or replace function rag._fold_next(after bigint, most int)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_tenant int;
    v_partition int;
    v_last bigint;
begin
    for v_tenant in
        select t.tenant_id
        from rag.tenants as t
        cross join lateral (
            select
            from rag.lexeme_statistics as d
            where d.tenant_id = t.tenant_id and d.lexeme = '' and d.delta_id > 0
            limit 1
        ) as w
        where t.tenant_id > _fold_next.after
        order by t.tenant_id
        limit _fold_next.most
    loop
        v_last := v_tenant;
        -- Not waited for: who moves or drops him just now will leave nothing, or it is done next
        -- time.
        perform
        from rag.tenants as t
        where t.tenant_id = v_tenant
        for key share skip locked;
        if found then
            select t.partition_id into v_partition
            from rag.tenants as t
            where t.tenant_id = v_tenant;
            perform rag._fold_statistics(v_tenant, v_partition, 1);
        end if;
    end loop;
    return v_last;
end
$$;

comment on function rag._fold_next(bigint, int) is
    'Take the deltas of the next so many tenants into their statistics; returns the last one, null '
    'when there are none.';

create or replace function rag._move_step(step rag.maintenance_steps)
    returns text
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_tenant int := (_move_step.step).subject;
    v_action text := (_move_step.step).action;
    v_name text := (select t.name from rag.tenants as t where t.tenant_id = v_tenant);
begin
    if v_name is null then
        return 'the tenant was dropped meanwhile';
    end if;
    if v_action = 'demote' then
        perform rag.cancel_move(v_name);
        perform rag._pool(v_name);
        return 'moved to a shared partition';
    end if;
    if (_move_step.step).position = 0 and v_action <> 'resume' then
        if rag._begin_move(v_name, v_action = 'rebuild') is null then
            return 'was done meanwhile';
        end if;
        return '';
    end if;
    return case rag._move_on(v_tenant)
        when 'done' then 'moved to a partition of his own'
        when 'waiting' then 'waiting'
        else ''
    end;
exception
    when lock_not_available or deadlock_detected or object_not_in_prerequisite_state then
        return 'left alone: ' || sqlerrm;
end
$$;

comment on function rag._move_step(rag.maintenance_steps) is
    'Move a tenant on, as maintenance has planned: empty if there is more to do, waiting (for '
    'writers), or the result.';

create or replace function rag._expire(name text)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_rows bigint;
begin
    if _expire.name = 'rag.query_embeddings' then
        delete from rag.query_embeddings as e
        using (
            select o.tenant_id, o.model_id, o.query_hash
            from rag.query_embeddings as o
            where o.expires_at <= clock_timestamp()
            for update skip locked
        ) as old
        where
            e.tenant_id = old.tenant_id
            and e.model_id = old.model_id
            and e.query_hash = old.query_hash;
    elsif _expire.name = 'rag.queries' then
        delete from rag.queries as q where q.created_at < clock_timestamp() - interval '1 hour';
    else
        delete from rag.completions as c
        using (
            select o.tenant_id, o.completion_id
            from rag.completions as o
            where o.completed_at < clock_timestamp() - interval '1 hour'
            for update skip locked
        ) as old
        where c.tenant_id = old.tenant_id and c.completion_id = old.completion_id;
    end if;
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;

comment on function rag._expire(text) is
    'Delete what is too old in a cache or a log, but for what others delete; returns the rows.';

create or replace function rag._settle_erasures(before timestamptz)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_column record;
    v_rows bigint;
    v_left bigint := 0;
begin
    -- Of a table that has become empty analyze keeps what it knew.
    for v_column in
        select
            s.schemaname, s.tablename, s.attname, s.inherited,
            format_type(a.atttypid, a.atttypmod) as type, c.relispartition
        from pg_stats as s
        join pg_class as c on c.oid = format('%I.%I', s.schemaname, s.tablename)::regclass
        join pg_attribute as a on a.attrelid = c.oid and a.attname = s.attname
        where
            s.schemaname in ('rag', 'rag_data')
            and c.relkind = 'r'
            and c.reltuples = 0
            -- Numbers and dates are nobody's text.
            and a.attlen = -1
    loop
        if to_regproc('pg_catalog.pg_clear_attribute_stats') is not null then
            execute format(
                'select pg_clear_attribute_stats(%L, %L, %L, %L)',
                v_column.schemaname, v_column.tablename, v_column.attname, v_column.inherited
            );
        elsif not v_column.relispartition then
            -- Before PostgreSQL 18: the same type again forgets them, and there is no row to write.
            execute format('alter table %I.%I alter column %I type %s',
                v_column.schemaname, v_column.tablename, v_column.attname, v_column.type);
        else
            v_left := v_left + 1;
        end if;
    end loop;
    if v_left > 0 then
        return 0;
    end if;
    update rag.erasures as e
    set settled_at = clock_timestamp()
    where e.settled_at is null and e.erased_at < _settle_erasures.before;
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;

comment on function rag._settle_erasures(timestamptz) is
    'After everything was analyzed: note that the planner''s statistics hold nothing of tenants '
    'dropped before. Before PostgreSQL 18 they wait until no empty partition has any.';

create or replace function rag._maintain_step(step rag.maintenance_steps)
    returns text
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- Whoever waits for a lock makes others wait.
    set lock_timeout = '1s'
as $$
#variable_conflict use_column
declare
    v_step rag.maintenance_steps := _maintain_step.step;
    v_last bigint;
    v_before bigint;
begin
    case v_step.action
        when 'fold' then
            v_last := rag._fold_next(v_step.position, 100);
            update rag.maintenance_steps as s
            set position = v_last
            where s.run_id = v_step.run_id and s.step = v_step.step and v_last is not null;
            return case when v_last is null then 'done' else '' end;
        when 'expire' then
            return format('%s rows deleted', rag._expire(v_step.object));
        when 'purge' then
            return case when rag.purge_all(500) < 500 then 'done' else '' end;
        when 'facets' then
            perform rag._fill_facets(v_step.subject);
            return 'done';
        when 'post' then
            return rag._postings_step(v_step.subject);
        when 'drop partitions' then
            select count(*) into v_before from rag.partitions as p;
            perform rag.drop_empty_partitions();
            return format(
                '%s dropped; others were left less than a minute ago, or are being read',
                v_before - (select count(*) from rag.partitions as p)
            );
        when 'drop model' then
            if (rag.drop_model(v_step.object)).tables_left > 0 then
                return '';
            end if;
            return 'done';
        when 'drop table' then
            execute format('drop table if exists %s', v_step.object);
            return 'done';
        when 'analyze' then
            if to_regclass(v_step.object) is null then
                return 'is gone';
            end if;
            execute format('analyze %s', v_step.object);
            return 'done';
        when 'settle' then
            return format('%s are settled', rag._settle_erasures(
                (select r.started_at from rag.maintenance_runs as r where r.run_id = v_step.run_id)
            ));
    end case;
exception
    when lock_not_available or deadlock_detected then
        return 'left for the next time: ' || sqlerrm;
end
$$;

comment on function rag._maintain_step(rag.maintenance_steps) is
    'Do a step that is no move: empty if there is more of it to do, or the result.';

create or replace function rag._maintain(run_id bigint)
    returns text
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_run rag.maintenance_runs;
    v_step rag.maintenance_steps;
    v_result text;
begin
    select r.* into v_run
    from rag.maintenance_runs as r
    where
        r.run_id = _maintain.run_id and r.finished_at is null and r.pid = pg_backend_pid()
    for update;
    if not found then
        raise exception 'the run is over' using
            errcode = 'object_not_in_prerequisite_state',
            detail = format('Run %s is not one of this session that goes on.', _maintain.run_id),
            hint = 'call rag.maintain()';
    end if;
    select s.* into v_step
    from rag.maintenance_steps as s
    where s.run_id = v_run.run_id and s.finished_at is null
    order by s.step
    limit 1;
    if not found then
        update rag.maintenance_runs as r
        set finished_at = clock_timestamp()
        where r.run_id = v_run.run_id;
        perform pg_advisory_unlock(v_run.lock_key);
        return 'done';
    end if;
    if v_step.action in ('resume', 'demote', 'promote', 'rebuild') then
        v_result := rag._move_step(v_step);
    else
        v_result := rag._maintain_step(v_step);
    end if;
    -- Whoever never lets go: what is made already is kept, and taken up by the next run.
    if v_result = 'waiting' and v_step.position > 20 then
        v_result := 'left for the next time: the tables were in use all the time';
    end if;
    update rag.maintenance_steps as s
    set
        started_at = coalesce(s.started_at, now()),
        position = case
            when s.action = 'fold' then s.position
            when v_result = 'waiting' then s.position + 1
            else greatest(s.position, 1)
        end,
        result = v_result,
        finished_at = case when v_result not in ('', 'waiting') then clock_timestamp() end
    where s.run_id = v_step.run_id and s.step = v_step.step;
    return case when v_result = 'waiting' then v_result else 'more' end;
end
$$;

comment on function rag._maintain(bigint) is
    'The next part of a run of maintenance, to be committed; returns more, waiting, or done.';

create or replace procedure rag.maintain(
    promote_at int default 10000,
    demote_at int default 5000,
    bloat real default 0.3,
    most_partitions int default 500
)
    language plpgsql
    security invoker
as $$
declare
    v_run bigint;
    v_state text;
    v_waits int := 0;
begin
    call rag._begin_as_autocommit();
    v_run := rag._begin_maintenance(
        maintain.promote_at, maintain.demote_at, maintain.bloat, maintain.most_partitions
    );
    commit;
    loop
        v_state := rag._maintain(v_run);
        commit;
        exit when v_state operator(pg_catalog.=) 'done';
        if v_state operator(pg_catalog.=) 'waiting' then
            v_waits := v_waits operator(pg_catalog.+) 1;
            perform pg_catalog.pg_sleep(rag._pause(v_waits));
        else
            v_waits := 0;
        end if;
    end loop;
end
$$;

comment on procedure rag.maintain (int, int, real, int) is
    'Do what rag.maintenance_plan shows, step by step, each committed; one session at a time. '
    'rag.maintenance_report() tells what it did.';

create or replace function rag.maintenance_report(runs int default 1)
    returns table (
        run_id bigint,
        step int,
        action text,
        tenant text,
        object text,
        reason text,
        result text,
        started_at timestamptz,
        seconds double precision
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select
        s.run_id, s.step, s.action, t.name, s.object, s.reason,
        case
            when s.result in ('', 'waiting') then 'under way'
            else coalesce(s.result, 'planned')
        end,
        s.started_at,
        extract(epoch from coalesce(s.finished_at, clock_timestamp()) - s.started_at)
        ::double precision
    from rag.maintenance_steps as s
    left join rag.tenants as t on t.tenant_id = s.subject
    where
        s.run_id in (
            select r.run_id
            from rag.maintenance_runs as r
            order by r.run_id desc
            limit maintenance_report.runs
        )
    order by s.run_id, s.step;
end
$$;

comment on function rag.maintenance_report(int) is
    'What the last runs of rag.maintain did, or are doing, step by step.';
