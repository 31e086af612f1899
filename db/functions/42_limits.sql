-- Holding the queue back: pauses, and how much a provider or a model takes in a minute.

create or replace function rag._set_pause(tenant text, model text, is_paused boolean)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := case
        when _set_pause.tenant is not null then rag._tenant_id(_set_pause.tenant)
    end;
    v_model int := case
        when _set_pause.model is not null then (rag._model(_set_pause.model)).model_id
    end;
begin
    if v_tenant is null and v_model is null then
        raise exception 'neither tenant nor model is given' using
            errcode = 'invalid_parameter_value',
            detail = 'tenant and model are null.',
            hint = 'Name a tenant, a model, or both. To hold all work back stop the embedders.';
    end if;
    if v_tenant is null then
        update rag.models as m
        set is_paused = _set_pause.is_paused
        where m.model_id = v_model and m.is_paused <> _set_pause.is_paused;
        return found;
    end if;
    if v_model is null then
        update rag.tenants as t
        set is_paused = _set_pause.is_paused
        where t.tenant_id = v_tenant and t.is_paused <> _set_pause.is_paused;
        return found;
    end if;
    update rag.tenants as t
    set
        paused_models = array_remove(t.paused_models, v_model)
        || case when _set_pause.is_paused then array[v_model] else '{}' end
    where
        t.tenant_id = v_tenant
        and (v_model = any(t.paused_models)) <> _set_pause.is_paused;
    return found;
end
$$;

comment on function rag._set_pause(text, text, boolean) is
    'Pause or resume the jobs of a tenant, a model or both; whether that changed anything.';

create or replace function rag.pause_jobs(tenant text default null, model text default null)
    returns boolean
    language sql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
    select rag._set_pause(pause_jobs.tenant, pause_jobs.model, true)
$$;

comment on function rag.pause_jobs(text, text) is
    'Embed nothing more of a tenant, by a model, or of a tenant by a model; what is claimed is '
    'finished. False if it was paused already.';

create or replace function rag.resume_jobs(tenant text default null, model text default null)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    perform rag._ring();
    return rag._set_pause(resume_jobs.tenant, resume_jobs.model, false);
end
$$;

comment on function rag.resume_jobs(text, text) is
    'Undo the same rag.pause_jobs; false if that was not paused.';

-- Rates ----------------------------------------------------------------------------------------

-- A tenth of the limit may go at once and nine tenths flow in over a minute: in no minute is it
-- more than the limit.
create or replace function rag._burst(per_minute int)
    returns double precision
    language sql
    immutable
    parallel safe
    security invoker
return case when per_minute is not null then greatest(1, per_minute / 10.0) end;

comment on function rag._burst(int) is
    'What a bucket holds at most: the tenth of a minute''s limit, and at least one.';

create or replace function rag._filled(amount double precision, per_minute int, since timestamptz)
    returns double precision
    language sql
    volatile
    parallel unsafe
    security invoker
return least(
    rag._burst(per_minute),
    amount + 0.9 * per_minute / 60 * extract(epoch from clock_timestamp() - since)
);

comment on function rag._filled(double precision, int, timestamptz) is
    'What a bucket holds by now; null without a limit.';

create or replace function rag.set_rate_limit(
    model text default null,
    provider text default null,
    requests_per_minute int default null,
    tokens_per_minute int default null
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
    v_model int := case
        when set_rate_limit.model is not null then (rag._model(set_rate_limit.model)).model_id
    end;
begin
    if (set_rate_limit.model is null) = (set_rate_limit.provider is null) then
        raise exception 'a limit is of a model or of a provider' using
            errcode = 'invalid_parameter_value',
            detail = format('model is %L, provider is %L.', set_rate_limit.model,
                set_rate_limit.provider),
            hint = 'Name one of them. The limit of a provider is shared by all of its models.';
    end if;
    if set_rate_limit.provider is not null then
        perform rag._check_provider(set_rate_limit.provider);
    end if;
    if set_rate_limit.requests_per_minute <= 0 or set_rate_limit.tokens_per_minute <= 0 then
        raise exception 'invalid rate limit' using
            errcode = 'invalid_parameter_value',
            detail = format('requests_per_minute is %s, tokens_per_minute is %s.',
                coalesce(set_rate_limit.requests_per_minute::text, 'null'),
                coalesce(set_rate_limit.tokens_per_minute::text, 'null')),
            hint = 'A limit is more than 0; null is no limit. To stop a model use '
            'rag.pause_jobs(model => …).';
    end if;
    delete from rag.rate_limits as l
    where
        l.model_id is not distinct from v_model
        and l.provider is not distinct from set_rate_limit.provider;
    if set_rate_limit.requests_per_minute is null and set_rate_limit.tokens_per_minute is null then
        return;
    end if;
    insert into rag.rate_limits (
        provider, model_id, requests_per_minute, tokens_per_minute, requests_left, tokens_left
    )
    values (
        set_rate_limit.provider, v_model, set_rate_limit.requests_per_minute,
        set_rate_limit.tokens_per_minute,
        coalesce(rag._burst(set_rate_limit.requests_per_minute), 0),
        coalesce(rag._burst(set_rate_limit.tokens_per_minute), 0)
    );
end
$$;

comment on function rag.set_rate_limit(text, text, int, int) is
    'Let claims of a model, or of all models of a provider, take at most so many requests and '
    'tokens a minute, over all workers; without numbers the limit is lifted.';

create or replace function rag._allows_at(rate rag.rate_limits)
    returns timestamptz
    language sql
    immutable
    parallel safe
    security invoker
return (rate).filled_at
+ greatest(
    0,
    (1 - (rate).requests_left) / (0.9 * (rate).requests_per_minute / 60),
    (1 - (rate).tokens_left) / (0.9 * (rate).tokens_per_minute / 60)
) * interval '1 second';

comment on function rag._allows_at(rag.rate_limits) is 'When a limit allows another request.';

create or replace function rag._allowed_at(model rag.models)
    returns timestamptz
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select max(rag._allows_at(l))
    from rag.rate_limits as l
    where l.model_id = (_allowed_at.model).model_id or l.provider = (_allowed_at.model).provider
$$;

comment on function rag._allowed_at(rag.models) is
    'When the limits of a model and of its provider allow another request; null without limits.';

create or replace function rag._text_tokens(content text)
    returns int
    language sql
    immutable
    parallel safe
    security invoker
return 1 + octet_length(content) / 4;

comment on function rag._text_tokens(text) is
    'About how many tokens a provider counts for a text, from its bytes.';

create or replace function rag._charge(model rag.models, requests double precision, tokens bigint)
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
    from rag.rate_limits as l
    where l.model_id = (_charge.model).model_id or l.provider = (_charge.model).provider
    order by l.rate_limit_id
    for update;
    update rag.rate_limits as l
    set
        requests_left = l.requests_left - _charge.requests,
        tokens_left = l.tokens_left - _charge.tokens
    where l.model_id = (_charge.model).model_id or l.provider = (_charge.model).provider;
end
$$;

comment on function rag._charge(rag.models, double precision, bigint) is
    'Take from the limits of a model and of its provider what a claim will use; they may owe.';

create or replace function rag._within_limits(model rag.models, batch int, due timestamptz)
    returns bigint[]
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_model rag.models := _within_limits.model;
    v_limits int[];
    v_requests double precision;
    v_tokens double precision;
    v_is_full boolean;
    v_jobs bigint[];
    v_spent bigint;
    -- What the worker puts into one request: of the embedder's own provider its defaults, of
    -- another's all of a claim, unless the settings tell.
    v_texts int := coalesce(
        substring(v_model.settings ->> 'texts_per_request' from '^[1-9]\d{0,5}$')::int,
        case when v_model.provider = 'openai' then 32 else 10000 end
    );
    v_request_tokens int := coalesce(
        substring(v_model.settings ->> 'batch_tokens' from '^[1-9]\d{0,7}$')::int,
        case when v_model.provider = 'openai' then 16384 end
    );
begin
    -- In one order by all claims; whoever claims of the same limit waits for this one to commit.
    v_limits := array(
        select l.rate_limit_id
        from rag.rate_limits as l
        where l.model_id = v_model.model_id or l.provider = v_model.provider
        order by l.rate_limit_id
        for update
    );
    if v_limits = '{}' then
        return rag._choose_jobs(v_model.model_id, _within_limits.batch, _within_limits.due);
    end if;
    update rag.rate_limits as l
    set
        requests_left = coalesce(
            rag._filled(l.requests_left, l.requests_per_minute, l.filled_at), 0
        ),
        tokens_left = coalesce(rag._filled(l.tokens_left, l.tokens_per_minute, l.filled_at), 0),
        filled_at = clock_timestamp()
    where l.rate_limit_id = any(v_limits);
    select
        min(l.requests_left) filter (where l.requests_per_minute is not null),
        min(l.tokens_left) filter (where l.tokens_per_minute is not null),
        bool_and(l.tokens_left >= rag._burst(l.tokens_per_minute))
            filter (where l.tokens_per_minute is not null)
    into v_requests, v_tokens, v_is_full
    from rag.rate_limits as l
    where l.rate_limit_id = any(v_limits);
    if v_requests < 1 or v_tokens < 1 then
        return null;
    end if;
    v_jobs := rag._choose_jobs(
        v_model.model_id,
        least(_within_limits.batch, coalesce(floor(v_requests), 10000) * v_texts)::int,
        _within_limits.due
    );
    -- As many as there are tokens for; a text above what the bucket can ever hold goes alone.
    select array_agg(g.job_id order by g.n), coalesce(max(g.total), 0) into v_jobs, v_spent
    from (
        select
            t.job_id,
            o.n,
            sum(rag._text_tokens(v_model.document_prefix || t.content)) over (order by o.n) as total
        from rag._job_texts(v_jobs) as t
        join unnest(v_jobs) with ordinality as o (job_id, n) on o.job_id = t.job_id
    ) as g
    where
        (v_tokens is null or g.total <= v_tokens or g.n = 1 and v_is_full)
        and coalesce(g.total <= floor(v_requests) * v_request_tokens or g.n = 1, true);
    if v_jobs is not null then
        perform rag._charge(
            v_model,
            least(cardinality(v_jobs), greatest(
                ceil(cardinality(v_jobs)::numeric / v_texts),
                ceil(v_spent::numeric / v_request_tokens)
            )),
            v_spent
        );
    end if;
    return v_jobs;
end
$$;

comment on function rag._within_limits(rag.models, int, timestamptz) is
    'Choose jobs of a model, as many as its limits and those of its provider allow now.';

create or replace function rag.list_limits()
    returns table (
        kind text,
        tenant text,
        model text,
        provider text,
        requests_per_minute int,
        tokens_per_minute int,
        next_at timestamptz
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
    select 'pause', null::text, m.name, m.provider, null::int, null::int, null::timestamptz
    from rag.models as m
    where m.is_paused and m.dropped_at is null
    union all
    select 'pause', t.name, null, null, null, null, null
    from rag.tenants as t
    where t.is_paused
    union all
    select 'pause', t.name, m.name, m.provider, null, null, null
    from rag.tenants as t
    join rag.models as m on m.model_id = any(t.paused_models)
    where t.paused_models <> '{}'
    union all
    select
        'rate', null, m.name, l.provider, l.requests_per_minute, l.tokens_per_minute,
        rag._allows_at(l)
    from rag.rate_limits as l
    left join rag.models as m on m.model_id = l.model_id
    order by 1, 2, 3, 4;
end
$$;

comment on function rag.list_limits() is
    'What holds the queue back: pauses of tenants and models, and rates of models and providers '
    'with the moment from which they allow another request.';
