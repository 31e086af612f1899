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
    return (
        select m
        from rag.models as m
        where m.model_id = coalesce(
            (select t.model_id from rag.tenants as t where t.tenant_id = _active_model.tenant_id),
            (select a.model_id from rag.models as a where a.is_active)
        )
    );
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

-- Adding ---------------------------------------------------------------------------------------

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
declare
    v_key text;
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
    if coalesce(btrim(_check_model.provider), '') = '' then
        raise exception 'no provider is given' using
            errcode = 'invalid_parameter_value',
            detail = format('provider is %L.', _check_model.provider),
            hint = 'The provider says how the embedder runs the model, such as '
            'sentence-transformers.';
    end if;
    if jsonb_typeof(_check_model.settings) is distinct from 'object' then
        raise exception 'settings is not an object' using
            errcode = 'invalid_parameter_value',
            detail = format('It is of type %s.',
                coalesce(jsonb_typeof(_check_model.settings), 'null')),
            hint = 'Settings are a JSON object, such as {"model": "…", "url": "https://…"}.';
    end if;
    -- Many may read this table, and backups hold it.
    select p.key into v_key
    from (
        with recursive
        parts as (
            select e.key, e.value
            from jsonb_each(_check_model.settings) as e
            union all
            select i.key, i.value
            from parts as p
            cross join lateral (
                select o.key, o.value
                from jsonb_each(
                    case when jsonb_typeof(p.value) = 'object' then p.value else '{}' end
                ) as o
                union all
                select p.key, a.value
                from jsonb_array_elements(
                    case when jsonb_typeof(p.value) = 'array' then p.value else '[]' end
                ) as a (value)
            ) as i
        )
        select s.key, s.value #>> '{}' as value
        from parts as s
    ) as p
    where
        p.key ~* '(api[_-]?key|secret|password|passwd|pwd|credentials?|authorization|bearer)$'
        or p.key ~* '(^|[_-]|access|auth)(key|token|auth)$'
        or p.value ~ '^[a-z][a-z0-9+.-]*://[^/@]*:[^/@]*@'
        or p.value ~* '^(sk-|bearer )'
    order by p.key
    limit 1;
    if v_key is not null then
        raise exception 'settings must not hold a secret' using
            errcode = 'invalid_parameter_value',
            detail = format('The key "%s" looks like one.', v_key),
            hint = 'Give keys and passwords to the embedder in its environment: everybody who '
            'searches may read rag.models, and so does every backup.';
    end if;
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

-- Changing over --------------------------------------------------------------------------------

create or replace function rag._missing(
    model_id int,
    current_model_id int,
    tenant_id int,
    out waiting bigint,
    out failed bigint,
    out tenants bigint
)
    returns record
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- Every chunk has an embedding or a job. What has just been put and waits for both models
    -- loses nothing by a change, nor does what neither of them can embed.
    select
        count(*) filter (where j.failed_at is null),
        count(*) filter (where j.failed_at is not null),
        count(distinct j.tenant_id)
    from rag.jobs as j
    join rag.tenants as t on t.tenant_id = j.tenant_id
    where
        j.model_id = _missing.model_id
        and case
            when _missing.tenant_id is null then t.model_id is null
            else j.tenant_id = _missing.tenant_id
        end
        and not exists (
            select
            from rag.jobs as o
            where
                o.tenant_id = j.tenant_id
                and o.chunk_id = j.chunk_id
                and o.model_id = _missing.current_model_id
                and (
                    j.failed_at is null and j.priority < rag._backfill_priority()
                    or j.failed_at is not null and o.failed_at is not null
                )
        )
$$;

comment on function rag._missing(int, int, int) is
    'How many chunks would lose their embedding if searches went over to a model: of one tenant, '
    'or of all that have no model of their own.';

create or replace function rag._check_coverage(model rag.models, tenant_id int)
    returns void
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_name text := (_check_coverage.model).name;
    v_current int := (rag._active_model(_check_coverage.tenant_id)).model_id;
    v_missing record;
begin
    if exists (
        select from rag.backfills as b where b.model_id = (_check_coverage.model).model_id
    ) then
        raise exception 'model "%" is not ready', v_name using
            errcode = 'object_not_in_prerequisite_state',
            detail = format('Not even all chunks are queued for it; %s of them are waiting.', (
                select count(*) from rag.jobs as j
                where j.model_id = (_check_coverage.model).model_id
            )),
            hint = 'Embedders queue and embed them; rag.progress() tells how far they are. '
            'force => true changes over at once.';
    end if;
    v_missing := rag._missing(
        (_check_coverage.model).model_id, v_current, _check_coverage.tenant_id
    );
    if v_missing.waiting + v_missing.failed > 0 then
        raise exception 'model "%" is not ready', v_name using
            errcode = 'object_not_in_prerequisite_state',
            detail = format(
                '%s chunks of %s tenants have no embedding by it: %s are waiting, %s have failed.',
                v_missing.waiting + v_missing.failed, v_missing.tenants, v_missing.waiting,
                v_missing.failed
            ),
            hint = 'Wait for the embedder, see rag.failures(), or change over all the same with '
            'force => true: searches then find those chunks by their words only.';
    end if;
end
$$;

comment on function rag._check_coverage(rag.models, int) is
    'Raise the error for a model that has not embedded yet what searches find now.';

create or replace function rag.activate_model(
    name text, tenant text default null, force boolean default false
)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := case
        when activate_model.tenant is not null then rag._tenant_id(activate_model.tenant)
    end;
    v_model rag.models;
    v_wanted int;
begin
    -- One change at a time. Searches and writers go on: they have seen the old model or the new.
    lock table rag.models in share row exclusive mode;
    if activate_model.name is null and v_tenant is not null then
        select m.* into v_model from rag.models as m where m.is_active;
    else
        v_model := rag._model(activate_model.name);
        v_wanted := v_model.model_id;
    end if;
    if v_tenant is not null then
        perform
        from rag.tenants as t
        where t.tenant_id = v_tenant and t.model_id is distinct from v_wanted;
        if not found then
            return false;
        end if;
        if not coalesce(activate_model.force, false)
            and v_model.model_id is distinct from (rag._active_model(v_tenant)).model_id
        then
            perform rag._check_coverage(v_model, v_tenant);
        end if;
        update rag.tenants as t
        set previous_model_id = t.model_id, model_id = v_wanted
        where t.tenant_id = v_tenant;
        return true;
    end if;
    if v_model.is_active then
        return false;
    end if;
    if not coalesce(activate_model.force, false) then
        perform rag._check_coverage(v_model, null);
    end if;
    perform rag._activate(v_model.model_id);
    return true;
end
$$;

comment on function rag.activate_model(text, text, boolean) is
    'Have searches use a model from now on: of one tenant, or of all that have no model of their '
    'own. Refused while it has not embedded what they find now, unless forced. False if it was '
    'in use already; a null name has a tenant follow the database again.';

create or replace function rag._activate(model_id int)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    update rag.models as m set is_active = false where m.is_active;
    update rag.models as m
    set is_active = true, activated_at = clock_timestamp()
    where m.model_id = _activate.model_id;
end
$$;

comment on function rag._activate(int) is 'Make a model the active one of the database.';

create or replace function rag.rollback_model(tenant text default null)
    returns text
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := case
        when rollback_model.tenant is not null then rag._tenant_id(rollback_model.tenant)
    end;
    v_model int;
begin
    lock table rag.models in share row exclusive mode;
    if v_tenant is not null then
        update rag.tenants as t
        set model_id = t.previous_model_id, previous_model_id = t.model_id
        where t.tenant_id = v_tenant and t.model_id is distinct from t.previous_model_id;
        if not found then
            raise exception 'the tenant has no model to go back to' using
                errcode = 'object_not_in_prerequisite_state',
                detail = format('Tenant %L has never had another one.', rollback_model.tenant),
                hint = 'rag.activate_model(name, tenant) changes over to any model.';
        end if;
        return (rag._active_model(v_tenant)).name;
    end if;
    -- Not checked for coverage: who goes back is in a hurry, and what was put meanwhile was
    -- embedded by both.
    select m.model_id into v_model
    from rag.models as m
    where not m.is_active and m.activated_at is not null and m.dropped_at is null
    order by m.activated_at desc
    limit 1;
    if not found then
        raise exception 'there is no model to go back to' using
            errcode = 'object_not_in_prerequisite_state',
            detail = 'No other model was ever active, or it was dropped.',
            hint = 'rag.activate_model(name) changes over to any model of rag.models.';
    end if;
    perform rag._activate(v_model);
    return (select m.name from rag.models as m where m.model_id = v_model);
end
$$;

comment on function rag.rollback_model(text) is
    'Go back to the model before the last change, of the database or of a tenant; returns the name '
    'of the model now in use. Again goes forth.';

-- Dropping -------------------------------------------------------------------------------------

create or replace function rag.drop_model(name text, out bytes bigint, out tables_left int)
    returns record
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_model rag.models;
    v_parent text;
    v_table regclass;
begin
    -- Also one of which tables were left.
    select m.* into v_model from rag.models as m where m.name = drop_model.name;
    if not found then
        v_model := rag._model(drop_model.name);
    end if;
    v_parent := format('embeddings_m%s', v_model.model_id);
    perform rag._own_models();
    select m.* into v_model from rag.models as m where m.model_id = v_model.model_id;
    if rag._serves(v_model) then
        raise exception 'model "%" is in use', drop_model.name using
            errcode = 'object_not_in_prerequisite_state',
            detail = case
                when v_model.is_active then 'It is the active model of the database.'
                else format('%s tenants have it as theirs.', (
                    select count(*) from rag.tenants as t where t.model_id = v_model.model_id
                ))
            end,
            hint = 'Change over to another one first: rag.activate_model(name, tenant).';
    end if;
    update rag.tenants as t
    set previous_model_id = null
    where t.previous_model_id = v_model.model_id;
    update rag.tenants as t
    set paused_models = array_remove(t.paused_models, v_model.model_id)
    where v_model.model_id = any(t.paused_models);
    update rag.tenants as t
    set hnsw_models = array_remove(t.hnsw_models, v_model.model_id)
    where v_model.model_id = any(t.hnsw_models);
    -- Embeddings by dropping their tables; jobs and queries wait in tables of all models.
    delete from rag.jobs as j where j.model_id = v_model.model_id;
    delete from rag.queries as q where q.model_id = v_model.model_id;
    delete from rag.completions as c where c.model_id = v_model.model_id;

    bytes := 0;
    tables_left := 0;
    -- Those of tenants who are moving are no partitions yet.
    foreach v_table in array array(
        select c.oid::regclass
        from pg_class as c
        where
            c.relnamespace = 'rag_data'::regnamespace
            and c.relkind = 'r'
            and c.relname ~ format('^(copied_)?%s_p\d+$', v_parent)
            and not exists (select from pg_inherits as i where i.inhrelid = c.oid)
    ) loop
        execute format('drop table %s', v_table);
    end loop;
    foreach v_table in array array(
        select i.inhrelid::regclass
        from pg_inherits as i
        where i.inhparent = format('rag_data.%I', v_parent)::regclass
        limit rag._most_tables()
    ) loop
        bytes := bytes + pg_total_relation_size(v_table);
        execute format('drop table %s', v_table);
    end loop;
    select count(*) into tables_left
    from pg_inherits as i
    where i.inhparent = format('rag_data.%I', v_parent)::regclass;
    if tables_left > 0 then
        update rag.models as m
        set dropped_at = clock_timestamp()
        where m.model_id = v_model.model_id;
        return;
    end if;
    perform rag._detach_model(v_parent);
    execute format('drop table rag_data.%I', v_parent);
    delete from rag.models as m where m.model_id = v_model.model_id;
end
$$;

comment on function rag.drop_model(text) is
    'Drop a model that no search uses, with its embeddings, word vectors and cached queries; tells '
    'the bytes given back. With thousands of partitions tables may be left: call it again.';

create or replace function rag._detach_model(child text)
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
    -- Every search locks rag.embeddings until its transaction ends, and waits behind whoever waits
    -- to have it alone: so this waits for moments only, and tries again.
    for i in 1..50 loop
        begin
            perform set_config('lock_timeout', '100ms', true);
            lock table rag.embeddings in access exclusive mode;
            perform set_config('lock_timeout', v_limit, true);
            execute format('alter table rag.embeddings detach partition rag_data.%I',
                _detach_model.child);
            return;
        exception
            when lock_not_available then
                perform pg_sleep(0.1);
        end;
    end loop;
    raise exception 'the model''s tables are in use' using
        errcode = 'lock_not_available',
        detail = 'A transaction that has searched did not end within 10 seconds.',
        hint = 'Try again when it has ended; pg_stat_activity shows what is open for long.';
end
$$;

comment on function rag._detach_model(text) is
    'Take the embeddings of a model out of rag.embeddings without stopping searches for long.';

-- Looking --------------------------------------------------------------------------------------

create or replace function rag._model_bytes(model_id int)
    returns bigint
    language sql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select coalesce(sum(pg_total_relation_size(i.inhrelid)), 0)::bigint
    from pg_inherits as i
    where i.inhparent = to_regclass(format('rag_data.embeddings_m%s', _model_bytes.model_id))
$$;

comment on function rag._model_bytes(int) is 'What the embeddings of a model take on disk.';

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

create or replace function rag.estimate_model(name text, dimensions int default null)
    returns table (
        chunks bigint,
        chunks_left bigint,
        bytes bigint,
        bytes_left bigint,
        chunks_per_second real,
        measured_of text,
        time_left interval
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_model rag.models;
    v_dimensions int;
begin
    select m.* into v_model
    from rag.models as m
    where m.name = estimate_model.name and m.dropped_at is null;
    v_dimensions := coalesce(v_model.dimensions, estimate_model.dimensions);
    if v_dimensions is null then
        -- The error for an unknown one; who only thinks of adding it gives its dimensions.
        v_model := rag._model(estimate_model.name);
    end if;
    chunks := (
        select coalesce(sum((rag._lexical_totals(t.tenant_id)).chunks), 0) from rag.tenants as t
    );
    chunks_left := chunks - (
        select coalesce(sum(l.embedded), 0) from rag.list_models() as l
        where l.name = estimate_model.name
    );
    bytes := rag._model_bytes(v_model.model_id);
    -- A row: 2 bytes a dimension, 40 of header and keys, and as much again in its index as keys.
    bytes_left := chunks_left * (2 * v_dimensions + 92);
    -- Nine of ten slots of ten seconds, so that neither idle time nor one lucky batch counts.
    select s.name, s.rate into measured_of, chunks_per_second
    from (
        select m.name, percentile_disc(0.9) within group (order by r.rate)::real as rate
        from (
            select c.model_id, sum(c.chunks) / 10.0 as rate
            from rag.completions as c
            group by c.model_id, floor(extract(epoch from c.completed_at) / 10)
        ) as r
        join rag.models as m on m.model_id = r.model_id
        group by m.model_id
        order by m.model_id is distinct from v_model.model_id, not m.is_active
        limit 1
    ) as s;
    time_left := case
        when chunks_left = 0 then interval '0'
        else make_interval(secs => round(chunks_left / nullif(chunks_per_second, 0)))
    end;
    return next;
end
$$;

comment on function rag.estimate_model(text, int) is
    'What a model costs, or would cost (then give its dimensions): chunks and bytes in all and '
    'left, and the time at the rate measured in the last hour, of this model or of another one.';
