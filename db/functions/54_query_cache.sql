-- The cache of exact query embeddings: asked for by searches, filled by the embedder.

create or replace function rag.prepare_query(query text)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v_tenant rag.tenants;
    v_model int;
    v_hash uuid;
    -- As many wait at most for one tenant: a few seconds' work of an embedder on two cores.
    v_waiting constant int := 100;
    v_stale constant interval := interval '10 minutes';
begin
    if pg_is_in_recovery()
        or current_setting('transaction_read_only')::boolean
        -- Two that look and then write would be a conflict for one of their transactions.
        or current_setting('transaction_isolation') = 'serializable'
        -- What a model would cut off anyway is no question that comes again.
        or coalesce(length(prepare_query.query), 0) not between 1 and 4000
    then
        return false;
    end if;
    v_tenant := rag._acting_tenant();
    if v_tenant.query_cache_size = 0 then
        return false;
    end if;
    v_model := (rag._serving_model(v_tenant.model_id)).model_id;
    if v_model is null then
        return false;
    end if;
    if rag._cached_embedding(v_tenant.tenant_id, v_model, prepare_query.query) is not null then
        return true;
    end if;
    v_hash := rag._query_hash(prepare_query.query);
    perform
    from rag.queries as q
    where q.tenant_id = v_tenant.tenant_id and q.model_id = v_model and q.query_hash = v_hash;
    if found then
        return true;
    end if;
    perform
    from rag.queries as q
    where q.tenant_id = v_tenant.tenant_id
    offset v_waiting - 1
    limit 1;
    if found then
        -- Nobody embeds them, it seems; then the newer ones are of more use than the old.
        delete from rag.queries as q
        using (
            select o.query_id
            from rag.queries as o
            where o.tenant_id = v_tenant.tenant_id and o.created_at < clock_timestamp() - v_stale
            for update skip locked
        ) as old
        where q.tenant_id = v_tenant.tenant_id and q.query_id = old.query_id;
        if not found then
            return false;
        end if;
    end if;
    insert into rag.queries (tenant_id, model_id, query_hash, query)
    values (v_tenant.tenant_id, v_model, v_hash, btrim(prepare_query.query, E' \t\r\n'));
    return true;
end
$$;

comment on function rag.prepare_query(text) is
    'Have the exact embedding of a query made, so that searches for it find it in the cache; '
    'rag.search does so by itself. False where nothing can be noted (read-only transactions, '
    'standbys, serializable ones), the cache is switched off, or too many wait already.';

create or replace function rag.claim_queries(
    worker text, model text, batch int default 64, lease interval default '2 minutes'
)
    returns table (
        query_id uuid,
        lease_token uuid,
        query_prefix text,
        query text
    )
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_token uuid := gen_random_uuid();
    v_model rag.models;
    v_rows bigint;
begin
    if claim_queries.batch is null or claim_queries.batch not between 1 and 1000 then
        raise exception 'invalid batch' using
            errcode = 'invalid_parameter_value',
            detail = format('batch is %s.', coalesce(claim_queries.batch::text, 'null')),
            hint = 'A batch has 1 to 1,000 queries.';
    end if;
    perform rag._check_lease(claim_queries.lease);
    select m.* into v_model
    from rag.models as m
    where m.name = claim_queries.model and not m.is_paused and m.dropped_at is null;
    if not found then
        return;
    end if;
    -- Not worth an embedding: those of a model that serves the tenant no longer, what a lease ran
    -- out over twice (it may have killed its workers), what nobody came for in an hour, and what
    -- was noted while its tenant was dropped or switched the cache off.
    delete from rag.queries as q
    using (
        select o.tenant_id, o.query_id
        from rag.queries as o
        where
            o.model_id is distinct from (rag._active_model(o.tenant_id)).model_id
            or o.attempts >= 2 and o.due_at <= v_now
            or o.created_at < v_now - interval '1 hour'
            or not exists (
                select
                from rag.tenants as t
                where
                    t.tenant_id = o.tenant_id
                    and t.query_cache_size > 0
                    and not t.is_suspended
            )
        for update skip locked
    ) as old
    where q.tenant_id = old.tenant_id and q.query_id = old.query_id;

    return query
    with
    -- In turn by tenant, so that nobody's hundred go before another's one.
    waiting as (
        select
            q.tenant_id,
            q.query_id,
            row_number() over (partition by q.tenant_id order by q.created_at) as turn
        from rag.queries as q
        where q.model_id = v_model.model_id and q.due_at <= v_now
    ),
    chosen as (
        select q.tenant_id, q.query_id
        from waiting as w
        join rag.queries as q on q.tenant_id = w.tenant_id and q.query_id = w.query_id
        where q.due_at <= v_now
        order by w.turn, q.created_at
        limit claim_queries.batch
        for update of q skip locked
    )
    update rag.queries as q
    set
        lease_token = v_token,
        worker = claim_queries.worker,
        attempts = q.attempts + 1,
        due_at = v_now + claim_queries.lease
    from chosen as c
    where q.tenant_id = c.tenant_id and q.query_id = c.query_id
    returning
        q.query_id, v_token, v_model.query_prefix, q.query;
    get diagnostics v_rows = row_count;
    -- They do not wait for the limits of a provider, the jobs behind them do: 20 tokens each.
    if v_rows > 0 then
        perform rag._charge(v_model, v_rows, 20 * v_rows);
    end if;
end
$$;

comment on function rag.claim_queries(text, text, int, interval) is
    'Lease up to batch queries that wait for their embedding by this model, tenants in turn. They '
    'are few and may be asked again, so they go before jobs.';

create or replace function rag.complete_queries(
    lease_token uuid, query_ids uuid[], embeddings vector[]
)
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    v_tenants int[];
    v_stored int;
begin
    if complete_queries.query_ids is null
        or complete_queries.embeddings is null
        or cardinality(complete_queries.query_ids) <> cardinality(complete_queries.embeddings)
    then
        raise exception 'query_ids and embeddings differ in length' using
            errcode = 'invalid_parameter_value',
            detail = format('%s queries and %s embeddings.',
                coalesce(cardinality(complete_queries.query_ids), 0),
                coalesce(cardinality(complete_queries.embeddings), 0)),
            hint = 'Give one embedding for each query, in the same order.';
    end if;
    -- Tenants are locked in one order by all, and none of them can be dropped meanwhile.
    v_tenants := array(
        select t.tenant_id
        from rag.tenants as t
        where t.tenant_id in (
            select q.tenant_id
            from rag.queries as q
            where q.lease_token = complete_queries.lease_token
        )
        order by t.tenant_id
        for key share
    );
    with
    done as (
        delete from rag.queries as q
        where q.lease_token = complete_queries.lease_token
        returning q.tenant_id, q.query_id, q.model_id, q.query_hash
    ),
    -- Two sessions may have noted the same query at the same time.
    fresh as (
        select distinct on (d.tenant_id, d.model_id, d.query_hash)
            d.tenant_id, d.model_id, d.query_hash, g.embedding, t.query_cache_lifetime
        from unnest(complete_queries.query_ids, complete_queries.embeddings)
            as g (query_id, embedding)
        join done as d on d.query_id = g.query_id
        join rag.models as m
            on m.model_id = d.model_id and m.dimensions = vector_dims(g.embedding)
        join rag.tenants as t on t.tenant_id = d.tenant_id
        where
            d.tenant_id = any(v_tenants)
            and t.query_cache_size > 0
            and vector_norm(g.embedding) > 0
    )
    insert into rag.query_embeddings (tenant_id, model_id, query_hash, embedding, expires_at)
    select
        f.tenant_id, f.model_id, f.query_hash, l2_normalize(f.embedding)::halfvec,
        clock_timestamp() + f.query_cache_lifetime
    from fresh as f
    order by f.tenant_id, f.model_id, f.query_hash
    on conflict (tenant_id, model_id, query_hash)
    do update set
        embedding = excluded.embedding,
        created_at = excluded.created_at,
        expires_at = excluded.expires_at;
    get diagnostics v_stored = row_count;
    perform rag._trim_query_cache(v_tenants);
    return v_stored;
end
$$;

comment on function rag.complete_queries(uuid, uuid[], vector[]) is
    'Put exact embeddings into the cache and end the claim: what is not given, or is no vector of '
    'the model, is forgotten. Returns how many were stored.';

create or replace function rag._trim_query_cache(tenants int[])
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
    -- Only what nobody else is deleting just now, else all would wait for one.
    delete from rag.query_embeddings as e
    using (
        select o.tenant_id, o.model_id, o.query_hash
        from rag.query_embeddings as o
        where o.expires_at <= clock_timestamp()
        limit 10000
        for update skip locked
    ) as old
    where
        e.tenant_id = old.tenant_id
        and e.model_id = old.model_id
        and e.query_hash = old.query_hash;
    delete from rag.query_embeddings as e
    using (
        select o.tenant_id, o.model_id, o.query_hash
        from unnest(_trim_query_cache.tenants) as w (tenant_id)
        join rag.tenants as t on t.tenant_id = w.tenant_id
        cross join lateral (
            select i.tenant_id, i.model_id, i.query_hash
            from rag.query_embeddings as i
            where i.tenant_id = t.tenant_id
            order by i.created_at desc
            offset t.query_cache_size
        ) as o
    ) as old
    where
        e.tenant_id = old.tenant_id
        and e.model_id = old.model_id
        and e.query_hash = old.query_hash;
end
$$;

comment on function rag._trim_query_cache(int[]) is
    'Forget what has expired, and the oldest of what these tenants have above their size.';

create or replace function rag.set_query_cache(
    tenant text, size int default 1000, lifetime interval default '30 days'
)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := rag._tenant_id(set_query_cache.tenant);
begin
    if set_query_cache.size is null or set_query_cache.size not between 0 and 1000000 then
        raise exception 'invalid size of the query cache' using
            errcode = 'invalid_parameter_value',
            detail = format('size is %s.', coalesce(set_query_cache.size::text, 'null')),
            hint = 'It is the number of queries kept, 0 to 1,000,000; 0 switches the cache off.';
    end if;
    if coalesce(set_query_cache.lifetime <= interval '0', true) then
        raise exception 'invalid lifetime of the query cache' using
            errcode = 'invalid_parameter_value',
            detail = format('lifetime is %s.', coalesce(set_query_cache.lifetime::text, 'null')),
            hint = 'It is longer than nothing, such as 30 days.';
    end if;
    update rag.tenants as t
    set
        query_cache_size = set_query_cache.size,
        query_cache_lifetime = set_query_cache.lifetime
    where t.tenant_id = v_tenant;
    if set_query_cache.size = 0 then
        delete from rag.queries as q where q.tenant_id = v_tenant;
    end if;
    update rag.query_embeddings as e
    set expires_at = least(e.expires_at, e.created_at + set_query_cache.lifetime)
    where e.tenant_id = v_tenant;
    perform rag._trim_query_cache(array[v_tenant]);
end
$$;

comment on function rag.set_query_cache(text, int, interval) is
    'How many exact embeddings of a tenant''s queries are kept, and how long; size 0 switches the '
    'cache off and forgets all of it.';
