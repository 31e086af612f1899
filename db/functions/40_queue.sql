-- The queue: all its rules are here, so that a worker in any language only embeds.
--
-- claim -> embed -> complete (or fail, or release). A claim is a lease with a fencing token: when
-- it runs out somebody else may claim the job, and what the first one brings later is dropped.

create or replace function rag._enqueue(
    tenant_id int, partition_id int, chunks bigint[], priority smallint
)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_model int;
    v_jobs bigint := 0;
    v_rows bigint;
begin
    perform rag._share_models();
    for v_model in
        select m.model_id from rag.models as m where m.dropped_at is null order by m.model_id
    loop
        -- The tenant may have this very text already, in this document or another one.
        insert into rag.embeddings (
            partition_id, tenant_id, chunk_id, model_id, collection_id, embedding, truncated_tokens,
            facets
        )
        select
            c.partition_id, c.tenant_id, c.chunk_id, v_model, c.collection_id, twin.embedding,
            twin.truncated_tokens,
            -- Whoever imports has not indexed them yet.
            rag._facets(c.tenant_id, c.collection_id, c.metadata)
        from rag.chunks as c
        cross join lateral (
            select e.embedding, e.truncated_tokens
            from rag.chunks as o
            join rag.embeddings as e
                on e.partition_id = _enqueue.partition_id
                and e.tenant_id = _enqueue.tenant_id
                and e.chunk_id = o.chunk_id
                and e.model_id = v_model
            where
                o.partition_id = _enqueue.partition_id
                and o.tenant_id = _enqueue.tenant_id
                and o.content_hash = c.content_hash
            limit 1
        ) as twin
        where
            c.partition_id = _enqueue.partition_id
            and c.tenant_id = _enqueue.tenant_id
            and c.chunk_id = any(_enqueue.chunks);

        insert into rag.jobs (
            tenant_id, chunk_id, model_id, partition_id, content_hash, priority
        )
        select c.tenant_id, c.chunk_id, v_model, c.partition_id, c.content_hash, _enqueue.priority
        from rag.chunks as c
        where
            c.partition_id = _enqueue.partition_id
            and c.tenant_id = _enqueue.tenant_id
            and c.chunk_id = any(_enqueue.chunks)
            and not exists (
                select
                from rag.embeddings as e
                where
                    e.partition_id = _enqueue.partition_id
                    and e.tenant_id = _enqueue.tenant_id
                    and e.chunk_id = c.chunk_id
                    and e.model_id = v_model
            );
        get diagnostics v_rows = row_count;
        v_jobs := v_jobs + v_rows;
    end loop;
    if v_jobs > 0 then
        perform rag._ring();
    end if;
end
$$;

comment on function rag._enqueue(int, int, bigint[], smallint) is
    'For new chunks and every model: the embedding of the same text if there is one, or a job.';

create or replace function rag._check_lease(lease interval)
    returns void
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if _check_lease.lease is null
        or _check_lease.lease <= interval '0'
        or _check_lease.lease > interval '1 day'
    then
        raise exception 'invalid lease' using
            errcode = 'invalid_parameter_value',
            detail = format('lease is %s.', coalesce(_check_lease.lease::text, 'null')),
            hint = 'A lease is longer than a batch takes and at most a day, such as 2 minutes.';
    end if;
end
$$;

comment on function rag._check_lease(interval) is 'Raise the error for a lease that cannot be.';

create or replace function rag._heads(
    model int, from_tenant int, to_tenant int default 2147483647
)
    returns table (tenant_id int, priority smallint, due_at timestamptz)
    language sql
    stable
    parallel safe
    security invoker
begin atomic
    -- Jumps through the index from one tenant and priority to the next, whose first entry is the
    -- one due first: a tenant with a million jobs costs one step. To be inlined, so that a limit
    -- ends it; parameters by number, because the linter takes their names for columns.
    with recursive
    heads as (
        (
            select j.tenant_id, j.priority, j.due_at
            from rag.jobs as j
            where
                j.model_id = $1
                and j.failed_at is null
                and j.tenant_id between $2 and $3
            order by j.tenant_id, j.priority, j.due_at
            limit 1
        )
        union all
        select n.tenant_id, n.priority, n.due_at
        from heads as h
        cross join lateral (
            select j.tenant_id, j.priority, j.due_at
            from rag.jobs as j
            where
                j.model_id = $1
                and j.failed_at is null
                and (j.tenant_id, j.priority) > (h.tenant_id, h.priority)
                and j.tenant_id <= $3
            order by j.tenant_id, j.priority, j.due_at
            limit 1
        ) as n
    )

    select h.tenant_id, h.priority, h.due_at from heads as h;
end;

comment on function rag._heads(int, int, int) is
    'Of each tenant and priority that waits for a model, when its next job is due.';

create or replace function rag._paused_tenants(model_id int)
    returns int[]
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select array(
        select t.tenant_id
        from rag.tenants as t
        where
            (t.is_paused or t.is_suspended or t.paused_models <> '{}')
            and (
                t.is_paused or t.is_suspended or _paused_tenants.model_id = any(t.paused_models)
            )
    )
$$;

comment on function rag._paused_tenants(int) is 'The tenants whose jobs for a model are paused.';

create or replace function rag._next_due(model_id int)
    returns timestamptz
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
as $$
#variable_conflict use_column
declare
    v_paused int[] := rag._paused_tenants(_next_due.model_id);
begin
    if v_paused <> '{}' then
        return (
            select min(h.due_at)
            from rag._heads(_next_due.model_id, 0) as h
            where h.tenant_id <> all(v_paused)
        );
    end if;
    -- From one priority to the next.
    return (
        with recursive
        heads as (
            (
                select j.priority, j.due_at
                from rag.jobs as j
                where j.model_id = _next_due.model_id and j.failed_at is null
                order by j.priority, j.due_at
                limit 1
            )
            union all
            select n.priority, n.due_at
            from heads as h
            cross join lateral (
                select j.priority, j.due_at
                from rag.jobs as j
                where
                    j.model_id = _next_due.model_id
                    and j.failed_at is null
                    and j.priority > h.priority
                order by j.priority, j.due_at
                limit 1
            ) as n
        )
        select min(h.due_at) from heads as h
    );
end
$$;

comment on function rag._next_due(int) is
    'When the next job of a model is due, of the tenants that are not paused; or null.';

create or replace function rag._choose_jobs(model_id int, batch int, due timestamptz)
    returns bigint[]
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    -- With more tenants than a batch has room for everybody's turn comes.
    v_from int := floor(random() * (select max(t.tenant_id) + 1 from rag.tenants as t));
    v_paused int[] := rag._paused_tenants(_choose_jobs.model_id);
    v_tenants int[];
    v_share int;
    v_jobs bigint[];
    v_crashed bigint;
    v_spent bigint[];
begin
    select array_agg(distinct w.tenant_id) into v_tenants
    from (
        select h.tenant_id
        from (
            select b.tenant_id, b.due_at
            from rag._heads(_choose_jobs.model_id, v_from) as b
            union all
            select a.tenant_id, a.due_at
            from rag._heads(_choose_jobs.model_id, 0) as a
            where a.tenant_id < v_from
        ) as h
        where h.due_at <= _choose_jobs.due and h.tenant_id <> all(v_paused)
        limit _choose_jobs.batch
    ) as w;
    v_share := ceil(_choose_jobs.batch::numeric / greatest(1, cardinality(v_tenants)));
    loop
        -- An equal share for each. Locked rows are those of another claim under way: skipped.
        -- A lease that ran out twice without a word may have killed its workers, five times is
        -- the end.
        select
            array_agg(p.job_id order by p.turn) filter (where not p.was_lost or p.attempts < 2),
            (array_agg(p.job_id order by p.turn) filter (
                where p.was_lost and p.attempts between 2 and 4
            ))[1],
            array_agg(p.job_id) filter (where p.was_lost and p.attempts >= 5)
        into v_jobs, v_crashed, v_spent
        from (
            select
                j.job_id,
                j.attempts,
                j.lease_token is not null as was_lost,
                row_number() over (
                    partition by j.tenant_id order by j.priority, j.due_at, j.job_id
                ) as turn
            from unnest(v_tenants) as t (tenant_id)
            cross join lateral (
                select i.job_id, i.tenant_id, i.priority, i.due_at, i.lease_token, i.attempts
                from rag.jobs as i
                where
                    i.model_id = _choose_jobs.model_id
                    and i.tenant_id = t.tenant_id
                    and i.failed_at is null
                    and i.due_at <= _choose_jobs.due
                -- Not by job_id too: that is not in the index.
                order by i.priority, i.due_at
                limit v_share
                for update skip locked
            ) as j
        ) as p;

        update rag.jobs as j
        set
            failed_at = _choose_jobs.due,
            lease_token = null,
            error = 'no worker finished it in 5 attempts'
            || coalesce('; the last error was: ' || j.error, '')
        where j.job_id = any(v_spent);
        -- Nothing but parked ones is no empty queue: look again.
        exit when v_jobs is not null or v_crashed is not null or v_spent is null;
    end loop;
    -- A crashed one goes alone, so that it takes no neighbours with it to the fifth attempt; every
    -- other time, so that many of them keep nobody waiting.
    if v_crashed is not null and (v_jobs is null or random() < 0.5) then
        return array[v_crashed];
    end if;
    return v_jobs[:_choose_jobs.batch];
end
$$;

comment on function rag._choose_jobs(int, int, timestamptz) is
    'Lock up to batch due jobs of a model, shared fairly among tenants; park what was lost five '
    'times. Null if there is none.';

create or replace function rag._job_texts(jobs bigint[])
    returns table (job_id bigint, content text)
    language plpgsql
    stable
    parallel safe
    security invoker
    rows 100
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_place record;
begin
    -- By partition, each a constant: otherwise every partition would be opened and locked.
    for v_place in
        select
            t.partition_id,
            array_agg(j.job_id) as jobs,
            array_agg(j.tenant_id) as tenants,
            array_agg(j.chunk_id) as chunks
        from rag.jobs as j
        join rag.tenants as t on t.tenant_id = j.tenant_id
        where j.job_id = any(_job_texts.jobs)
        group by t.partition_id
    loop
        return query
        select l.job_id, c.content
        from unnest(v_place.jobs, v_place.tenants, v_place.chunks)
            as l (job_id, tenant_id, chunk_id)
        join rag.chunks as c
            on c.partition_id = v_place.partition_id
            and c.tenant_id = l.tenant_id
            and c.chunk_id = l.chunk_id;
    end loop;
end
$$;

comment on function rag._job_texts(bigint[]) is 'What jobs are to embed.';

create or replace function rag.claim_jobs(
    worker text,
    batch int default 64,
    lease interval default '2 minutes',
    models text[] default null
)
    returns table (
        job_id bigint,
        lease_token uuid,
        model text,
        dimensions int,
        document_prefix text,
        content text,
        attempts int
    )
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
    -- Statistics of a queue are those of another hour. Only by index, and in its order, does a
    -- claim read what it takes and not what waits: 0.4 s of 300,000 jobs otherwise.
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_token uuid := gen_random_uuid();
    -- What searches use now comes before a model to be; but one claim of eight is the other way
    -- round, or a database that is never done would never come to its next model.
    v_is_other_turn boolean := random() < 0.125;
    v_model rag.models;
    v_jobs bigint[];
begin
    if claim_jobs.batch is null or claim_jobs.batch not between 1 and 10000 then
        raise exception 'invalid batch' using
            errcode = 'invalid_parameter_value',
            detail = format('batch is %s.', coalesce(claim_jobs.batch::text, 'null')),
            hint = 'A batch has 1 to 10,000 jobs.';
    end if;
    perform rag._check_lease(claim_jobs.lease);

    for v_model in
        select m.*
        from rag.models as m
        where
            not m.is_paused
            and m.dropped_at is null
            and (claim_jobs.models is null or m.name = any(claim_jobs.models))
        order by rag._serves(m) <> v_is_other_turn desc, m.model_id
    loop
        if rag._next_due(v_model.model_id) <= v_now or rag._refill_queue(v_model.model_id) then
            v_jobs := rag._within_limits(v_model, claim_jobs.batch, v_now);
        end if;
        exit when v_jobs is not null;
    end loop;
    if v_jobs is null then
        return;
    end if;

    update rag.jobs as j
    set
        lease_token = v_token,
        worker = claim_jobs.worker,
        attempts = j.attempts + 1,
        due_at = v_now + claim_jobs.lease
    where j.job_id = any(v_jobs);
    return query
    select
        j.job_id, v_token, v_model.name, v_model.dimensions, v_model.document_prefix, t.content,
        j.attempts::int
    from rag._job_texts(v_jobs) as t
    join rag.jobs as j on j.job_id = t.job_id;
end
$$;

comment on function rag.claim_jobs(text, int, interval, text[]) is
    'Lease up to batch due jobs of one model (of those named, or of any), shared fairly among '
    'tenants; attempts count here.';

create or replace function rag._refill_queue(model_id int)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_queued int := 0;
begin
    -- In this part of the database there may have been nothing to queue.
    while v_queued = 0 loop
        v_queued := rag._backfill(_refill_queue.model_id, 10000);
    end loop;
    return v_queued is not null;
end
$$;

comment on function rag._refill_queue(int) is
    'Queue more chunks for a model that was added and has nothing due; true if there were any.';

create or replace function rag.next_due(models text[] default null)
    returns timestamptz
    language sql
    stable
    parallel safe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
    select min(greatest(
        case
            when exists (select from rag.backfills as b where b.model_id = m.model_id)
                then least(now(), d.due_at)
            else d.due_at
        end,
        rag._allowed_at(m)
    ))
    from rag.models as m
    cross join lateral (select rag._next_due(m.model_id) as due_at) as d
    where
        not m.is_paused
        and m.dropped_at is null
        and (next_due.models is null or m.name = any(next_due.models))
$$;

comment on function rag.next_due(text[]) is
    'When the next job can be claimed, for the models named or for any; null if there is none.';
