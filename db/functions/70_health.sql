-- What is going on: progress of the embeddings, status of everything.

create or replace function rag._overseen_tenants()
    returns int[]
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if pg_has_role(rag._role(), 'rag_admin', 'member')
        or pg_has_role(rag._role(), 'rag_worker', 'member')
    then
        return array(select t.tenant_id from rag.tenants as t);
    end if;
    return array(select c.tenant_id from rag._context() as c);
end
$$;

comment on function rag._overseen_tenants() is
    'The tenants whose work the caller may watch: all for rag_admin and rag_worker, else his own.';

create or replace function rag.progress()
    returns table (
        tenant text,
        model text,
        embedded bigint,
        waiting bigint,
        leased bigint,
        failed bigint,
        oldest_waiting interval,
        chunks_per_second real,
        time_left interval
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
    set enable_seqscan = off
    set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    v_tenants int[] := rag._overseen_tenants();
    -- Their partitions, so that a single tenant's progress opens and locks one of them.
    v_partitions int[] := array(
        select distinct t.partition_id from rag.tenants as t where t.tenant_id = any(v_tenants)
    );
    v_backfills int[] := array(select b.model_id from rag.backfills as b);
begin
    return query
    with
    -- By index alone, and tenant by tenant: of a million jobs all this took half as long as from
    -- the table.
    open as (
        select m.model_id, t.tenant_id, j.jobs
        from rag.models as m
        cross join unnest(v_tenants) as t (tenant_id)
        cross join lateral (
            select count(*) as jobs
            from rag.jobs as i
            where
                i.model_id = m.model_id
                and i.tenant_id = t.tenant_id
                and i.failed_at is null
        ) as j
        where j.jobs > 0
    ),
    leased as (
        select j.model_id, j.tenant_id, count(*) as jobs
        from rag.jobs as j
        where j.lease_token is not null and j.tenant_id = any(v_tenants)
        group by j.model_id, j.tenant_id
    ),
    failed as (
        select j.model_id, j.tenant_id, count(*) as jobs
        from rag.jobs as j
        where j.failed_at is not null and j.tenant_id = any(v_tenants)
        group by j.model_id, j.tenant_id
    ),
    queue as (
        select
            q.model_id,
            q.tenant_id,
            sum(q.open) - sum(q.leased) as waiting,
            sum(q.leased) as leased,
            sum(q.failed) as failed
        from (
            select o.model_id, o.tenant_id, o.jobs as open, 0 as leased, 0 as failed
            from open as o
            union all
            select l.model_id, l.tenant_id, 0, l.jobs, 0 from leased as l
            union all
            select f.model_id, f.tenant_id, 0, 0, f.jobs from failed as f
        ) as q
        group by q.model_id, q.tenant_id
    ),
    stored as (
        select e.tenant_id, e.model_id, count(*) as chunks
        from rag.embeddings as e
        where e.partition_id = any(v_partitions) and e.tenant_id = any(v_tenants)
        group by e.tenant_id, e.model_id
    ),
    -- Of a model that was added: chunks that are not even queued yet wait, too.
    unqueued as (
        select c.tenant_id, b.model_id, count(*) as chunks
        from rag.backfills as b
        join rag.chunks as c
            on c.partition_id = any(v_partitions)
            and (
                c.tenant_id > b.after_tenant
                or c.tenant_id = b.after_tenant and c.chunk_id > b.after_chunk
            )
        where
            v_backfills <> '{}'
            and c.tenant_id = any(v_tenants)
            and not exists (
                select
                from rag.jobs as j
                where
                    j.tenant_id = c.tenant_id
                    and j.chunk_id = c.chunk_id
                    and j.model_id = b.model_id
            )
        group by c.tenant_id, b.model_id
    ),
    pace as (
        -- Of the last five minutes in which anything was finished: a rate that is neither that
        -- of one lucky batch nor that of yesterday.
        select
            c.tenant_id,
            c.model_id,
            (sum(c.chunks) / greatest(
                1, extract(epoch from clock_timestamp() - min(c.completed_at))
            ))::real as per_second
        from rag.completions as c
        where
            c.tenant_id = any(v_tenants)
            and c.completed_at > clock_timestamp() - interval '5 minutes'
        group by c.tenant_id, c.model_id
    )
    select
        t.name,
        m.name,
        coalesce(s.chunks, 0),
        (coalesce(q.waiting, 0) + coalesce(u.chunks, 0))::bigint,
        coalesce(q.leased, 0)::bigint,
        coalesce(q.failed, 0)::bigint,
        clock_timestamp() - w.oldest,
        coalesce(p.per_second, 0),
        case
            when w.work = 0 then interval '0'
            when p.per_second > 0 then make_interval(secs => round(w.work / p.per_second))
        end
    from rag.tenants as t
    cross join rag.models as m
    left join queue as q on q.tenant_id = t.tenant_id and q.model_id = m.model_id
    left join stored as s on s.tenant_id = t.tenant_id and s.model_id = m.model_id
    left join unqueued as u on u.tenant_id = t.tenant_id and u.model_id = m.model_id
    left join pace as p on p.tenant_id = t.tenant_id and p.model_id = m.model_id
    cross join lateral (
        select
            coalesce(q.waiting + q.leased, 0) + coalesce(u.chunks, 0) as work,
            -- Of those next in line, one of each priority.
            (
                select min(i.created_at)
                from rag._heads(m.model_id, t.tenant_id, t.tenant_id) as h
                cross join lateral (
                    select o.created_at
                    from rag.jobs as o
                    where
                        o.model_id = m.model_id
                        and o.tenant_id = t.tenant_id
                        and o.priority = h.priority
                        and o.due_at = h.due_at
                        and o.failed_at is null
                    limit 1
                ) as i
                where q.waiting + q.leased > 0
            ) as oldest
    ) as w
    where
        t.tenant_id = any(v_tenants)
        and m.dropped_at is null
        and (
            q.tenant_id is not null or s.tenant_id is not null or u.tenant_id is not null
        )
    order by t.name, m.name;
end
$$;

comment on function rag.progress() is
    'Embeddings stored and outstanding by tenant and model, with rate and time left (null: not '
    'known yet); for administrators and workers of all tenants, otherwise of the caller''s.';

create or replace function rag.wait_for(
    document_id bigint, timeout interval default '1 minute'
)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_tenant int;
    v_partition int;
    v_is_own boolean;
    v_waiting bigint;
    v_failed bigint;
    v_until timestamptz := clock_timestamp() + coalesce(wait_for.timeout, interval '0');
begin
    select c.tenant_id, c.partition_id into v_tenant, v_partition from rag._context() as c;
    loop
        -- Also when it is deleted meanwhile: nothing to wait for is not the same as all is there.
        -- now() is when this transaction began. The row's xmin would not do, which in a
        -- subtransaction is another one.
        select d.updated_at = now() and pg_current_xact_id_if_assigned() is not null
        into v_is_own
        from rag.documents as d
        where d.tenant_id = v_tenant and d.document_id = wait_for.document_id;
        if not found then
            raise exception 'document % does not exist', wait_for.document_id using
                errcode = 'no_data_found',
                detail = format('Tenant %L has no document of that id.', rag.current_tenant()),
                hint = 'rag.put returns the id of a document.';
        end if;
        if v_is_own then
            raise exception 'document % is not committed', wait_for.document_id using
                errcode = 'object_not_in_prerequisite_state',
                detail = 'It was put in this very transaction, so no worker can see it.',
                hint = 'Commit, then wait.';
        end if;
        select
            count(*) filter (where j.failed_at is null),
            count(*) filter (where j.failed_at is not null)
        into v_waiting, v_failed
        from rag.chunks as c
        join rag.jobs as j on j.tenant_id = v_tenant and j.chunk_id = c.chunk_id
        where
            j.model_id = (rag._active_model(v_tenant)).model_id
            and c.partition_id = v_partition
            and c.tenant_id = v_tenant
            and c.document_id = wait_for.document_id;
        if v_waiting = 0 or v_failed > 0 then
            return v_failed = 0;
        end if;
        exit when clock_timestamp() >= v_until;
        perform pg_sleep(least(
            0.05, greatest(0, extract(epoch from v_until - clock_timestamp()))
        ));
    end loop;
    return false;
end
$$;

comment on function rag.wait_for(bigint, interval) is
    'Wait until every chunk of a document has the active model''s embedding: true then, false '
    'after the timeout or at once when one has failed for good.';

create or replace function rag.document_state(document_id bigint)
    returns text
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_tenant int;
    v_partition int;
    v_model int;
    v_state text;
begin
    select c.tenant_id, c.partition_id into v_tenant, v_partition from rag._context() as c;
    v_model := (rag._active_model(v_tenant)).model_id;
    perform
    from rag.documents as d
    where d.tenant_id = v_tenant and d.document_id = document_state.document_id;
    if not found then
        return null;
    end if;
    select
        case
            when count(*) = 0 then 'empty'
            when bool_or(j.failed_at is not null) then 'failed'
            when bool_or(e.chunk_id is null) then 'waiting'
            else 'embedded'
        end
    into v_state
    from rag.chunks as c
    left join rag.embeddings as e
        on e.partition_id = v_partition
        and e.tenant_id = v_tenant
        and e.chunk_id = c.chunk_id
        and e.model_id = v_model
    left join rag.jobs as j
        on j.tenant_id = v_tenant and j.chunk_id = c.chunk_id and j.model_id = v_model
    where
        c.partition_id = v_partition
        and c.tenant_id = v_tenant
        and c.document_id = document_state.document_id;
    return v_state;
end
$$;

comment on function rag.document_state(bigint) is
    'By the model that searches use: embedded, waiting, failed (some passage of it, for good), or '
    'empty (it has no passages); null if there is no such document.';

create or replace function rag._pgvector_warning(version text)
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select case
        when v.numbers < array[0, 8, 2] then
            'pgvector below 0.8.2: a parallel HNSW build may leak data of other relations or '
            'crash the server (CVE-2026-3172); below 0.8.4: vacuum of HNSW may corrupt the '
            'index. Upgrade, then reindex every HNSW index.'
        when v.numbers < array[0, 8, 4] then
            'pgvector below 0.8.4: vacuum of HNSW during inserts may corrupt the index. '
            'Upgrade, then reindex every HNSW index.'
    end
    from (
        -- Not every provider's version is three numbers and nothing else.
        select array(select m[1]::int from regexp_matches(version, '\d+', 'g') as m) as numbers
    ) as v
$$;

comment on function rag._pgvector_warning(text) is
    'The known faults of that version of pgvector that touch us, or null.';

create or replace function rag._notification_warning(usage double precision)
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
-- Of the queue of all notifications of the server, 8 GB: it is empty but for moments.
return case when _notification_warning.usage > 0.1 then
    'some session listens and does not take what it hears, because it is stopped or in a '
    'transaction: find it in pg_stat_activity and end it. When the queue is full, puts fail'
end;

comment on function rag._notification_warning(double precision) is
    'What is wrong when so much of the queue of notifications is in use, or null.';

create or replace function rag.status()
    returns table (item text, value text, warning text)
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_vector text := (select e.extversion from pg_extension as e where e.extname = 'vector');
    -- Of the whole server to administrators; a tenant is told of what is his.
    v_is_admin boolean := pg_has_role(rag._role(), 'rag_admin', 'member');
    v_tenants int[] := rag._overseen_tenants();
    v_partitions int[] := array(
        select distinct t.partition_id from rag.tenants as t where t.tenant_id = any(v_tenants)
    );
    v_due interval;
    v_waiting bigint;
    v_held bigint;
    v_failed bigint;
    -- Every chunk has an embedding by each of these, or a job.
    v_models int[] := array(
        select m.model_id
        from rag.models as m
        where
            m.dropped_at is null
            and not exists (select from rag.backfills as b where b.model_id = m.model_id)
    );
    v_chunks bigint;
    v_embeddings bigint;
    v_covered bigint;
    v_queued bigint;
begin
    -- What waits for a tenant or a model that is held is not late.
    select
        clock_timestamp() - min(j.due_at) filter (where j.failed_at is null and not h.is_held),
        count(*) filter (where j.failed_at is null and not h.is_held),
        count(*) filter (where j.failed_at is null and h.is_held),
        count(*) filter (where j.failed_at is not null),
        count(*) filter (where j.model_id = any(v_models))
    into v_due, v_waiting, v_held, v_failed, v_queued
    from rag.jobs as j
    join rag.tenants as t on t.tenant_id = j.tenant_id
    join rag.models as m on m.model_id = j.model_id
    cross join lateral (
        select
            t.is_suspended
            or t.is_paused
            or m.is_paused
            or j.model_id = any(t.paused_models) as is_held
    ) as h
    where j.tenant_id = any(v_tenants);

    if v_is_admin then
        return query
        select 'schema', max(g.name), null::text from rag.migrations as g;
        return query
        select
            'postgres', current_setting('server_version'),
            rag._postgres_warning(current_setting('server_version_num')::int);
        return query
        select 'pgvector', v_vector, rag._pgvector_warning(v_vector);
        -- On our functions' search path: what is there may match a call better than pg_catalog
        -- does, and runs with the owner's rights. Before PostgreSQL 15 schema public was open by
        -- default.
        return query
        select
            'schema of pgvector', n.nspname::text,
            case when has_schema_privilege('public', n.oid, 'create') then format(
                'every role may create functions there and so act as rag_owner: '
                'revoke create on schema %I from public', n.nspname
            ) end
        from pg_extension as e
        join pg_namespace as n on n.oid = e.extnamespace
        where e.extname = 'vector';
    end if;
    return query
    select 'model', max(m.name) filter (where m.is_active),
        case when not coalesce(bool_or(m.is_active), false)
            then 'no model is active: only the lexical leg can serve'
        end
    from rag.models as m;
    return query
    with held as (
        select format('tenant %s', t.name) as name, t.is_suspended
        from rag.tenants as t
        where
            t.tenant_id = any(v_tenants)
            and (t.is_paused or t.is_suspended or t.paused_models <> '{}')
        union all
        select format('model %s', m.name), false
        from rag.models as m
        where m.is_paused and m.dropped_at is null
    )
    select
        'paused', count(*)::text,
        nullif(concat_ws(
            '; ',
            'nothing is embedded for '
            || string_agg(h.name, ', ') filter (where not h.is_suspended)
            || ': rag.resume_jobs()',
            'nothing is embedded for '
            || string_agg(h.name, ', ') filter (where h.is_suspended)
            || ': suspended, rag.resume_tenant()'
        ), '')
    from held as h;
    return query
    select
        'word vectors',
        coalesce(max(w.words) filter (where w.is_current), 0) || ' words'
        || coalesce(
            ', ' || floor(100 * max(w.progress) filter (where not w.is_current))
            || ' % of the next ones learned',
            ''
        ),
        case
            when bool_or(w.due_at < clock_timestamp()) filter (where not w.is_current)
                then 'nobody is learning them any more: is an embedder running?'
            when not coalesce(bool_or(w.is_current), false)
                then 'none yet: a search without embedding has the lexical leg alone, but for '
                'queries in the cache'
        end
    from rag.models as m
    left join rag.word_vector_sets as w on w.model_id = m.model_id
    where m.is_active;
    return query
    select 'cached queries', count(*)::text, null
    from rag.query_embeddings as q
    where q.tenant_id = any(v_tenants);
    -- The table is not logged, so a standby has it not.
    if not pg_is_in_recovery() then
        return query
        select
            'queries waiting', count(*)::text,
            case
                when min(q.created_at) < clock_timestamp() - interval '1 minute'
                    then 'the oldest waits for more than a minute: is an embedder running?'
            end
        from rag.queries as q
        where q.tenant_id = any(v_tenants);
    end if;
    if v_is_admin then
        return query
        select 'tenants', count(*)::text, null from rag.tenants;
        return query
        select 'partitions', count(*)::text, null from rag.partitions;
        -- As rag.maintain does it by default. A look at an index for each tenant.
        return query
        select
            'tenants to promote', count(*)::text,
            case when count(*) > 0 then format(
                '%s has %s chunks in a shared partition, where a search compares each of them: '
                'call rag.maintain()', min(n.name), max(n.chunks)
            ) end
        from (
            select c.chunks, first_value(t.name) over (order by c.chunks desc) as name
            from rag._tenant_chunks() as c
            join rag.tenants as t on t.tenant_id = c.tenant_id
            join rag.partitions as p on p.partition_id = c.partition_id and p.kind = 'shared'
            where
                c.chunks >= 10000
                and not exists (select from rag.moves as m where m.tenant_id = c.tenant_id)
        ) as n;
        return query
        select
            'notifications', round(100 * u.usage) || ' % of the queue',
            rag._notification_warning(u.usage)
        from pg_notification_queue_usage() as u (usage);
    end if;
    return query
    select 'documents', count(*)::text, null
    from rag.documents as d
    where d.tenant_id = any(v_tenants);
    select count(*) into v_chunks
    from rag.chunks as c
    where c.partition_id = any(v_partitions) and c.tenant_id = any(v_tenants);
    return query
    select 'chunks', v_chunks::text, null;
    select count(*), count(*) filter (where e.model_id = any(v_models))
    into v_embeddings, v_covered
    from rag.embeddings as e
    where e.partition_id = any(v_partitions) and e.tenant_id = any(v_tenants);
    return query
    select 'embeddings', v_embeddings::text, null;
    return query
    select
        'collections to index anew', count(*)::text,
        case when count(*) > 0 then 'as their tenant: rag.reindex(), until it returns 0' end
    from rag.collections as n
    where n.tenant_id = any(v_tenants) and n.reindexed_to is not null;
    return query
    select
        'jobs waiting', v_waiting::text,
        case
            -- A worker polls every second: what is due for a minute is due to nobody.
            when v_due > interval '1 minute'
                then format('the oldest has waited for %s: is an embedder running?',
                    date_trunc('second', v_due))
        end;
    return query
    select 'jobs held', v_held::text, null
    where v_held > 0;
    return query
    select
        'jobs failed', v_failed::text,
        case when v_failed > 0
            then 'see rag.failures(); rag.retry_failed() tries them again'
        end;
    -- By subtraction, all in one snapshot: to look for each chunk would take a second for a
    -- million, and this nothing beside the counts that are told anyway.
    return query
    select
        'jobs missing', n.missing::text,
        case when n.missing > 0
            then 'some chunks have neither an embedding nor a job: insert into rag.backfills '
            '(model_id) select model_id from rag.models where dropped_at is null'
        end
    from (
        select greatest(0, v_chunks * cardinality(v_models) - v_covered - v_queued) as missing
    ) as n;
    return query
    select
        'files waiting',
        count(*)::text,
        case
            when min(u.due_at) < clock_timestamp() - interval '1 minute'
                then format('the oldest has waited for %s: is an embedder running?',
                    date_trunc('second', clock_timestamp() - min(u.due_at)))
        end
    from rag.uploads as u
    join rag.tenants as t on t.tenant_id = u.tenant_id
    where
        u.tenant_id = any(v_tenants)
        and u.state in ('pending', 'processing')
        and not t.is_suspended;
    return query
    select
        'files failed', count(*)::text,
        case when count(*) > 0
            then 'see rag.uploads; rag.retry_upload(id) tries one again, rag.delete_upload(id) '
            'forgets it'
        end
    from rag.uploads as u
    where u.tenant_id = any(v_tenants) and u.state = 'failed';
    return query
    select
        'to be purged', sum(n.rows)::text,
        case
            when min(n.due) < clock_timestamp() - interval '2 days'
                then format('since %s: rag.maintain() or rag.purge() gives the space back',
                    date_trunc('second', min(n.due)))
        end
    from (
        select count(*) as rows, min(d.expires_at) as due
        from rag.documents as d
        where d.tenant_id = any(v_tenants) and d.expires_at <= statement_timestamp()
        union all
        select count(*), min(p.purge_at)
        from rag.past_documents as p
        where p.tenant_id = any(v_tenants) and p.purge_at <= statement_timestamp()
    ) as n;
    return query
    select
        'last completion', max(c.completed_at)::text, null
    from rag.completions as c
    where c.tenant_id = any(v_tenants);
end
$$;

comment on function rag.status() is
    'Health of everything, a line each; warning is null where all is well. Who is no administrator '
    'is told of what is his tenant''s.';
