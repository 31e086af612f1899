-- Leases: what a worker does with the jobs that it claimed, and jobs that failed.

create or replace function rag.complete_jobs(
    lease_token uuid, job_ids bigint[], embeddings vector[], truncated_tokens int[] default null
)
    returns int
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
    v_place record;
    v_stored int := 0;
    v_rows int;
begin
    if cardinality(complete_jobs.job_ids) is distinct from cardinality(complete_jobs.embeddings)
    then
        raise exception 'job_ids and embeddings differ in length' using
            errcode = 'invalid_parameter_value',
            detail = format('%s jobs and %s embeddings.',
                coalesce(cardinality(complete_jobs.job_ids), 0),
                coalesce(cardinality(complete_jobs.embeddings), 0)),
            hint = 'Give one embedding for each job, in the same order.';
    end if;
    select count(distinct g.job_id) into v_rows from unnest(complete_jobs.job_ids) as g (job_id);
    if v_rows < cardinality(complete_jobs.job_ids) then
        raise exception 'a job is null or given twice' using
            errcode = 'invalid_parameter_value',
            detail = format('%s jobs, %s of them different ones.',
                cardinality(complete_jobs.job_ids), v_rows),
            hint = 'Give one embedding for each job, in the same order.';
    end if;
    if complete_jobs.truncated_tokens is not null
        and (
            cardinality(complete_jobs.truncated_tokens) <> cardinality(complete_jobs.job_ids)
            or exists (
                select from unnest(complete_jobs.truncated_tokens) as g (tokens)
                where g.tokens < 0
            )
        )
    then
        raise exception 'invalid truncated_tokens' using
            errcode = 'invalid_parameter_value',
            detail = format('%s jobs and %s numbers of tokens, the least of them %s.',
                cardinality(complete_jobs.job_ids), cardinality(complete_jobs.truncated_tokens),
                coalesce((
                    select min(g.tokens)
                    from unnest(complete_jobs.truncated_tokens) as g (tokens)
                )::text, 'unknown')),
            hint = 'Give one number for each job, in the same order: how many tokens of its text '
            'the model did not take, 0 for none, null for unknown.';
    end if;
    perform rag._share_models();
    -- The tenants first: one that moves to another partition meanwhile would leave his vectors
    -- behind. rag.drop_tenant takes both locks in this order, too.
    perform
    from rag.tenants as t
    where t.tenant_id in (
        select j.tenant_id from rag.jobs as j where j.job_id = any(complete_jobs.job_ids)
    )
    order by t.tenant_id
    for key share;
    -- Held until commit: whoever deletes one of these chunks waits here, then deletes what this
    -- transaction stored. A job with another token is somebody else's by now, a parked one has
    -- none.
    perform
    from rag.jobs as j
    where
        j.job_id = any(complete_jobs.job_ids) and j.lease_token = complete_jobs.lease_token
    order by j.job_id
    for update;

    update rag.jobs as j
    set
        failed_at = clock_timestamp(),
        lease_token = null,
        error = case
            when g.embedding is null then 'the model gave no vector'
            when vector_dims(g.embedding) <> m.dimensions then format(
                'the model gave %s dimensions, %s has %s',
                vector_dims(g.embedding), m.name, m.dimensions
            )
            else 'the model gave a zero vector, which has no direction'
        end
    from unnest(complete_jobs.job_ids, complete_jobs.embeddings) as g (job_id, embedding),
        rag.models as m
    where
        j.job_id = g.job_id
        and j.lease_token = complete_jobs.lease_token
        and m.model_id = j.model_id
        and (
            g.embedding is null
            or vector_dims(g.embedding) <> m.dimensions
            or vector_norm(g.embedding) = 0
        );

    for v_place in
        select distinct t.partition_id, j.model_id
        from rag.jobs as j
        join rag.tenants as t on t.tenant_id = j.tenant_id
        where
            j.job_id = any(complete_jobs.job_ids) and j.lease_token = complete_jobs.lease_token
    loop
        perform rag._create_embedding_child(v_place.model_id, v_place.partition_id);
        insert into rag.embeddings (
            partition_id, tenant_id, chunk_id, model_id, collection_id, embedding, truncated_tokens,
            facets
        )
        select
            c.partition_id, c.tenant_id, c.chunk_id, v_place.model_id, c.collection_id,
            -- Normalised first: half precision ends at 65,504, and one such number would be an
            -- error for the whole batch. The cosine stays what it was.
            l2_normalize(g.embedding)::halfvec, g.truncated_tokens,
            coalesce(
                (
                    select nullif(l.facets, '{}')
                    from rag.lexemes as l
                    where
                        l.partition_id = v_place.partition_id
                        and l.tenant_id = c.tenant_id
                        and l.chunk_id = c.chunk_id
                    -- Who changes them later waits, and then finds this embedding. Who is at it now
                    -- does not: unknown is right, only slower, until maintenance fills it in.
                    for share of l skip locked
                ),
                '{0}'
            )
        from unnest(
            complete_jobs.job_ids, complete_jobs.embeddings, complete_jobs.truncated_tokens
        ) as g (job_id, embedding, truncated_tokens)
        join rag.jobs as j
            on j.job_id = g.job_id
            and j.lease_token = complete_jobs.lease_token
            and j.model_id = v_place.model_id
        join rag.chunks as c
            on c.partition_id = v_place.partition_id
            and c.tenant_id = j.tenant_id
            and c.chunk_id = j.chunk_id
            and c.content_hash = j.content_hash
        on conflict (tenant_id, chunk_id, model_id, partition_id)
        do update
        set
            embedding = excluded.embedding,
            truncated_tokens = excluded.truncated_tokens,
            facets = excluded.facets;
        get diagnostics v_rows = row_count;
        v_stored := v_stored + v_rows;
    end loop;

    with
    done as (
        delete from rag.jobs as j
        where
            j.job_id = any(complete_jobs.job_ids) and j.lease_token = complete_jobs.lease_token
        returning j.tenant_id, j.model_id
    )
    insert into rag.completions (tenant_id, model_id, chunks)
    select d.tenant_id, d.model_id, count(*)
    from done as d
    group by d.tenant_id, d.model_id;
    -- Only what no other worker is deleting just now, else all would wait for one.
    delete from rag.completions as c
    using (
        select o.tenant_id, o.completion_id
        from rag.completions as o
        where o.completed_at < now() - interval '1 hour'
        for update skip locked
    ) as old
    where c.tenant_id = old.tenant_id and c.completion_id = old.completion_id;
    return v_stored;
end
$$;

comment on function rag.complete_jobs(uuid, bigint[], vector[], int[]) is
    'Store embeddings and finish their jobs; returns how many. Jobs whose lease went to another '
    'are left alone; a zero vector or wrong dimensions fail the job for good. truncated_tokens: '
    'how many tokens of each text the model did not take, null: unknown.';

create or replace function rag._hold_jobs(lease_token uuid)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    perform
    from rag.jobs as j
    where j.lease_token = _hold_jobs.lease_token
    order by j.job_id
    for update;
end
$$;

comment on function rag._hold_jobs(uuid) is
    'Lock what is left of a claim, in the order of all who lock jobs: a worker''s heartbeat and '
    'its completion would otherwise wait for each other.';

create or replace function rag.fail_jobs(
    lease_token uuid, job_ids bigint[], error text, permanent boolean default false
)
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_rows int;
begin
    perform rag._hold_jobs(fail_jobs.lease_token);
    -- 2, 4, 8 … seconds, at most 10 minutes, and up to half as much again by chance, so that
    -- jobs that failed together do not come back together. The fifth attempt is the last.
    update rag.jobs as j
    set
        error = coalesce(nullif(left(fail_jobs.error, 2000), ''), 'unknown error'),
        lease_token = null,
        failed_at = case
            when fail_jobs.permanent or j.attempts >= 5 then clock_timestamp()
        end,
        due_at = clock_timestamp()
        + least(600, power(2, j.attempts)) * (1 + random() / 2) * interval '1 second'
    where
        j.job_id = any(fail_jobs.job_ids)
        and j.lease_token = fail_jobs.lease_token;
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;

comment on function rag.fail_jobs(uuid, bigint[], text, boolean) is
    'Put jobs back with their error, to be tried again later; park them if permanent or after '
    'the fifth attempt. Returns how many were still held.';

create or replace function rag.release_jobs(lease_token uuid)
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_rows int;
begin
    perform rag._hold_jobs(release_jobs.lease_token);
    update rag.jobs as j
    set
        lease_token = null,
        worker = null,
        attempts = greatest(0, j.attempts - 1),
        due_at = clock_timestamp()
    where j.lease_token = release_jobs.lease_token;
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;

comment on function rag.release_jobs(uuid) is
    'Give back what is left of a claim at once, the attempt not counted; returns how many.';

create or replace function rag.extend_lease(
    lease_token uuid, lease interval default '2 minutes'
)
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_rows int;
begin
    perform rag._check_lease(extend_lease.lease);
    perform rag._hold_jobs(extend_lease.lease_token);
    update rag.jobs as j
    set due_at = clock_timestamp() + extend_lease.lease
    where j.lease_token = extend_lease.lease_token;
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;

comment on function rag.extend_lease(uuid, interval) is
    'Heartbeat: hold a claim for longer; returns how many jobs it still holds.';

create or replace function rag.retry_failed(tenant text default null)
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_tenant int := case
        when retry_failed.tenant is not null then rag._tenant_id(retry_failed.tenant)
    end;
    v_rows int;
begin
    update rag.jobs as j
    set failed_at = null, error = null, attempts = 0, due_at = clock_timestamp()
    from (
        select o.job_id
        from rag.jobs as o
        where o.failed_at is not null and (v_tenant is null or o.tenant_id = v_tenant)
        order by o.job_id
        for update
    ) as parked
    where j.job_id = parked.job_id;
    get diagnostics v_rows = row_count;
    if v_rows > 0 then
        perform rag._ring();
    end if;
    return v_rows;
end
$$;

comment on function rag.retry_failed(text) is
    'Queue parked jobs again, of one tenant or of all; returns how many.';

create or replace function rag.failures()
    returns table (
        tenant text,
        model text,
        document_id bigint,
        uri text,
        chunk_id bigint,
        ordinal int,
        error text,
        attempts int,
        failed_at timestamptz
    )
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
    v_overseen int[] := rag._overseen_tenants();
    v_tenant int;
    v_partition int;
begin
    for v_tenant, v_partition in
        select t.tenant_id, t.partition_id
        from rag.tenants as t
        where
            t.tenant_id = any(v_overseen)
            and exists (
                select from rag.jobs as j
                where j.tenant_id = t.tenant_id and j.failed_at is not null
            )
        order by t.name
    loop
        return query
        select
            t.name, m.name, c.document_id, d.uri, j.chunk_id, c.ordinal, j.error,
            j.attempts::int, j.failed_at
        from rag.jobs as j
        join rag.tenants as t on t.tenant_id = j.tenant_id
        join rag.models as m on m.model_id = j.model_id
        join rag.chunks as c
            on c.partition_id = v_partition
            and c.tenant_id = v_tenant
            and c.chunk_id = j.chunk_id
        join rag.documents as d on d.tenant_id = v_tenant and d.document_id = c.document_id
        where j.tenant_id = v_tenant and j.failed_at is not null
        order by j.failed_at;
    end loop;
end
$$;

comment on function rag.failures() is
    'Parked jobs with their errors: the caller''s tenant''s, or all for administrators.';
