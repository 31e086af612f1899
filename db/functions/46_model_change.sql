-- Changing models: over to another, back, and leaving one.

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
    set jit = off
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
declare
    v_before int;
begin
    update rag.models as m set is_active = false where m.is_active
    returning m.model_id into v_before;
    update rag.models as m
    set
        is_active = true,
        activated_at = clock_timestamp(),
        previous_model_id = v_before
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
                detail = format('Tenant %L has never had another one, or it was dropped.',
                    rollback_model.tenant),
                hint = 'rag.activate_model(name, tenant) changes over to any model.';
        end if;
        return (rag._active_model(v_tenant)).name;
    end if;
    -- Not checked for coverage: who goes back is in a hurry, and what was put meanwhile was
    -- embedded by both.
    select m.previous_model_id into v_model from rag.models as m where m.is_active;
    if v_model is null then
        raise exception 'there is no model to go back to' using
            errcode = 'object_not_in_prerequisite_state',
            detail = 'No other model was ever active.',
            hint = 'rag.activate_model(name) changes over to any model of rag.models.';
    end if;
    perform from rag.models as m where m.model_id = v_model and m.dropped_at is null;
    if not found then
        raise exception 'the model to go back to was dropped' using
            errcode = 'object_not_in_prerequisite_state',
            detail = 'It was the active one before the last change.',
            hint = 'rag.activate_model(name) changes over to any model of rag.models.';
    end if;
    perform rag._activate(v_model);
    return (select m.name from rag.models as m where m.model_id = v_model);
end
$$;

comment on function rag.rollback_model(text) is
    'Go back to the model before the last change, of the database or of a tenant; returns the name '
    'of the model now in use. Again goes forth.';

create or replace function rag.drop_model(name text, out bytes bigint, out tables_left int)
    returns record
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
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
    -- Nowhere to go back to. Null would be the model of the database, which he did not have.
    update rag.tenants as t
    set previous_model_id = t.model_id
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
