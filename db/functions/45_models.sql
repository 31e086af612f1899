-- Models: adding one beside the one in use, changing over, going back, dropping.
--
-- Who writes chunks or embeddings holds rag.models in row share mode until he commits, who changes
-- the set of models holds it exclusively. So a chunk is either there when a new model's backfill
-- looks, or was put by somebody who knows the model: none slips through. Searches only read it and
-- wait for neither.

create or replace function rag._share_models()
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    lock table rag.models in row share mode;
    -- A snapshot from before a model was added does not show it: then this is a serialisation
    -- failure, because adding one writes all rows.
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        perform from rag.models as m for share;
    end if;
end
$$;

comment on function rag._share_models() is
    'Keep the set of models as it is until this transaction ends; the next statement sees all.';

create or replace function rag._own_models()
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_limit text := current_setting('lock_timeout');
begin
    perform rag._require_fresh_snapshots('a change of models');
    -- Whoever puts waits as long as this waits for those who are putting.
    perform set_config('lock_timeout', '5s', true);
    lock table rag.models in exclusive mode;
    perform set_config('lock_timeout', v_limit, true);
exception
    when lock_not_available then
        raise exception 'the models are in use' using
            errcode = 'lock_not_available',
            detail = 'A transaction that puts or deletes documents did not end within 5 seconds.',
            hint = 'Try again when it has ended; pg_stat_activity shows what is open for long.';
end
$$;

comment on function rag._own_models() is
    'Wait for all who write chunks or embeddings, and keep others out until this one commits.';

create or replace function rag._serving_model(own int)
    returns rag.models
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- One plan for a session: planning is most of the work, and opens every index.
    set plan_cache_mode = force_generic_plan
    -- A database has a handful of models: the table is read as fast, with one lock less.
    set enable_seqscan = on
    set enable_indexscan = off
    set enable_bitmapscan = off
as $$
begin
    return (
        select m
        from rag.models as m
        where case
            when _serving_model.own is null then m.is_active
            else m.model_id = _serving_model.own
        end
    );
end
$$;

comment on function rag._serving_model(int) is
    'The model that a tenant has for himself, or without one that of the database; or null.';

create or replace function rag._active_model(tenant_id int)
    returns rag.models
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- One plan for a session: planning is most of the work, and opens every index.
    set plan_cache_mode = force_generic_plan
as $$
begin
    return rag._serving_model((
        select t.model_id from rag.tenants as t where t.tenant_id = _active_model.tenant_id
    ));
end
$$;

comment on function rag._active_model(int) is
    'The model that a tenant''s searches use: his own, or else that of the database; or null.';

create or replace function rag._serves(model rag.models)
    returns boolean
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        (_serves.model).is_active
        or exists (
            select from rag.tenants as t where t.model_id = (_serves.model).model_id
        )
$$;

comment on function rag._serves(rag.models) is 'Whether any tenant''s searches use the model.';

create or replace function rag._model(name text)
    returns rag.models
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_model rag.models;
begin
    if _model.name is null then
        raise exception 'no model is named' using
            errcode = 'invalid_parameter_value',
            detail = 'The name of the model is null.',
            hint = 'select name from rag.models lists them.';
    end if;
    select m.* into v_model
    from rag.models as m
    where m.name = _model.name and m.dropped_at is null;
    if not found then
        raise exception 'model "%" does not exist', _model.name using
            errcode = 'RG005',
            detail = format('No row of rag.models has the name %L.', _model.name),
            hint = 'select name from rag.models lists them.';
    end if;
    return v_model;
end
$$;

comment on function rag._model(text) is 'The model of that name, or an error.';

create or replace function rag.active_model()
    returns table (
        name text,
        dimensions int,
        provider text,
        revision text,
        settings jsonb,
        query_prefix text,
        document_prefix text
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
        m.name, m.dimensions, m.provider, m.revision, m.settings, m.query_prefix,
        m.document_prefix
    from rag._context() as c
    cross join lateral rag._active_model(c.tenant_id) as m
    where m.model_id is not null;
end
$$;

comment on function rag.active_model() is
    'The model that the caller''s searches use, and that must make the embeddings he gives.';

create or replace function rag._check_model(
    name text, dimensions int, provider text, settings jsonb
)
    returns void
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if coalesce(length(btrim(_check_model.name)), 0) not between 1 and 200
        or _check_model.name <> btrim(_check_model.name)
    then
        raise exception 'invalid model name' using
            errcode = 'invalid_parameter_value',
            detail = format('The name is %L.', _check_model.name),
            hint = 'A name has 1 to 200 characters and no spaces around it.';
    end if;
    if exists (select from rag.models as m where m.name = _check_model.name) then
        raise exception 'model "%" exists already', _check_model.name using
            errcode = 'duplicate_object',
            detail = format('rag.models has a row of the name %L.', _check_model.name),
            hint = 'The name of a row is yours to choose: the one of the provider goes into '
            'settings, as {"model": "…"}.';
    end if;
    if _check_model.dimensions is null or _check_model.dimensions not between 1 and 4000 then
        raise exception 'invalid number of dimensions' using
            errcode = 'invalid_parameter_value',
            detail = format('dimensions is %s.', coalesce(_check_model.dimensions::text, 'null')),
            hint = 'A model has 1 to 4,000: more cannot be indexed by pgvector (halfvec). Many '
            'models of more can be asked for fewer.';
    end if;
    perform rag._check_provider(_check_model.provider);
    perform rag._check_settings(_check_model.provider, _check_model.settings);
end
$$;

comment on function rag._check_model(text, int, text, jsonb) is
    'Raise the error for a model that cannot be added.';

create or replace function rag._most_tables()
    returns int
    language sql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- Each has an index, and both of them in toast: four locks, six while it is attached. The
    -- server has room for so many in all, of which one transaction takes a half at most.
    select greatest(
        1,
        current_setting('max_locks_per_transaction')::int
        * current_setting('max_connections')::int / 12
    )
$$;

comment on function rag._most_tables() is
    'How many tables of embeddings one transaction may create or drop: each takes locks.';

create or replace function rag.add_model(
    name text,
    dimensions int,
    provider text default 'sentence-transformers',
    settings jsonb default '{}',
    query_prefix text default '',
    document_prefix text default '',
    revision text default null
)
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_model int;
begin
    perform rag._check_model(
        add_model.name, add_model.dimensions, add_model.provider,
        coalesce(add_model.settings, '{}')
    );
    perform rag._own_models();
    -- Again: somebody may have added it while this one waited.
    perform rag._check_model(
        add_model.name, add_model.dimensions, add_model.provider,
        coalesce(add_model.settings, '{}')
    );
    v_model := rag._create_model(
        add_model.name, add_model.dimensions, add_model.provider, add_model.revision,
        coalesce(add_model.query_prefix, ''), coalesce(add_model.document_prefix, '')
    );
    -- All rows: this is what tells a transaction of an older snapshot (rag._share_models).
    update rag.models as m
    set
        settings = case
            when m.model_id = v_model then coalesce(add_model.settings, '{}') else m.settings
        end;
    insert into rag.backfills (model_id) values (v_model);
    -- A small database is queued at once, a large one while its jobs are claimed.
    perform rag._backfill(v_model, 10000);
    perform rag._ring();
    return v_model;
end
$$;

comment on function rag.add_model(text, int, text, jsonb, text, text, text) is
    'Add a model beside the one in use; returns its id. All chunks are queued for it behind '
    'other work, what is put from now on for both; rag.activate_model changes over.';

create or replace function rag._backfill(model_id int, most int)
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
    -- In the order of the keys, and no further than the batch goes.
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
as $$
#variable_conflict use_column
declare
    v_tenant int;
    v_chunk bigint;
    v_partition int;
    v_queued int := 0;
    v_seen int;
    v_rows int;
    v_last bigint;
    v_left int := _backfill.most;
begin
    -- One at a time; the others claim what there is.
    select b.after_tenant, b.after_chunk into v_tenant, v_chunk
    from rag.backfills as b
    where b.model_id = _backfill.model_id
    for update skip locked;
    if not found then
        return null;
    end if;
    loop
        begin
            select t.tenant_id, t.partition_id,
                case when t.tenant_id = v_tenant then v_chunk else 0 end
            into v_tenant, v_partition, v_chunk
            from rag.tenants as t
            where t.tenant_id >= v_tenant
            order by t.tenant_id
            limit 1
            for key share nowait;
        exception
            -- Being dropped or moved: another claim goes on behind it.
            when lock_not_available then
                v_queued := nullif(v_queued, 0);
                exit;
        end;
        if v_tenant is null then
            delete from rag.backfills as b where b.model_id = _backfill.model_id;
            return v_queued;
        end if;
        select count(*), max(s.chunk_id) into v_seen, v_last
        from (
            select c.chunk_id
            from rag.chunks as c
            where
                c.partition_id = v_partition and c.tenant_id = v_tenant and c.chunk_id > v_chunk
            order by c.chunk_id
            limit v_left
        ) as s;
        with
        -- Locked, so that nobody deletes a chunk while it gets a job that he does not see.
        missing as (
            select c.tenant_id, c.chunk_id, c.partition_id, c.content_hash
            from rag.chunks as c
            where
                c.partition_id = v_partition
                and c.tenant_id = v_tenant
                and c.chunk_id > v_chunk
                and c.chunk_id <= v_last
                and not exists (
                    select
                    from rag.embeddings as e
                    where
                        e.partition_id = v_partition
                        and e.tenant_id = v_tenant
                        and e.chunk_id = c.chunk_id
                        and e.model_id = _backfill.model_id
                )
                and not exists (
                    select
                    from rag.jobs as j
                    where
                        j.tenant_id = v_tenant
                        and j.chunk_id = c.chunk_id
                        and j.model_id = _backfill.model_id
                )
            for key share of c
        )
        insert into rag.jobs (
            tenant_id, chunk_id, model_id, partition_id, content_hash, priority
        )
        select
            m.tenant_id, m.chunk_id, _backfill.model_id, m.partition_id, m.content_hash,
            rag._backfill_priority()
        from missing as m
        on conflict do nothing;
        get diagnostics v_rows = row_count;
        v_queued := v_queued + v_rows;
        if v_seen < v_left then
            v_tenant := v_tenant + 1;
            v_chunk := 0;
        else
            v_chunk := v_last;
        end if;
        -- A tenant, however small, takes a millisecond, for which 20 chunks can be queued.
        v_left := v_left - v_seen - 20;
        exit when v_left <= 0;
    end loop;
    update rag.backfills as b
    set after_tenant = v_tenant, after_chunk = v_chunk
    where b.model_id = _backfill.model_id;
    return v_queued;
end
$$;

comment on function rag._backfill(int, int) is
    'Queue the next chunks for a model that was added, tenant by tenant; how many were queued, or '
    'null if that is done, another claim is at it, or a tenant is in the way.';

create or replace function rag._backfill_priority()
    returns smallint
    language sql
    immutable
    parallel safe
    security invoker
return 20::smallint;

comment on function rag._backfill_priority() is
    'Of jobs that a new model brings: behind single puts (0) and bulk loads (10).';

create or replace function rag.list_models()
    returns table (
        name text,
        dimensions int,
        provider text,
        is_active boolean,
        tenants bigint,
        embedded bigint,
        waiting bigint,
        failed bigint,
        bytes bigint,
        word_vectors int,
        is_paused boolean,
        activated_at timestamptz
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
        m.name,
        m.dimensions,
        m.provider,
        m.is_active,
        (
            select count(*)
            from rag.tenants as t
            where coalesce(t.model_id = m.model_id, m.is_active)
        ),
        coalesce(p.embedded, 0)::bigint,
        coalesce(p.waiting, 0)::bigint,
        coalesce(p.failed, 0)::bigint,
        rag._model_bytes(m.model_id),
        coalesce((
            select s.words
            from rag.word_vector_sets as s
            where s.model_id = m.model_id and s.is_current
        ), 0),
        m.is_paused,
        m.activated_at
    from rag.models as m
    left join (
        select
            g.model, sum(g.embedded) as embedded, sum(g.waiting + g.leased) as waiting,
            sum(g.failed) as failed
        from rag.progress() as g
        group by g.model
    ) as p on p.model = m.name
    where m.dropped_at is null
    order by m.is_active desc, m.activated_at desc nulls last, m.model_id;
end
$$;

comment on function rag.list_models() is
    'The models: whose searches use them, how much they have embedded and have yet to, what they '
    'take on disk, and how many words their word vectors know.';
