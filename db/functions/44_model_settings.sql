-- What a model's provider must know: checked when it is added, and changed later.
--
-- The embedder that ships with ragdb has two providers. A worker of one's own may have others; of
-- their settings nothing is known here but that they hold no secret.

create or replace function rag._check_provider(provider text)
    returns void
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_plain text := regexp_replace(lower(_check_provider.provider), '[^a-z]', '', 'g');
    v_meant text := case
        when v_plain in (
            'openai', 'openaicompatible', 'azure', 'azureopenai', 'ollama', 'tei',
            'textembeddingsinference', 'vllm', 'http', 'https'
        ) then 'openai'
        when v_plain in (
            'sentencetransformers', 'sentencetransformer', 'sbert', 'huggingface', 'hf', 'torch'
        ) then 'sentence-transformers'
    end;
begin
    if coalesce(btrim(_check_provider.provider), '') = '' then
        raise exception 'no provider is given' using
            errcode = 'invalid_parameter_value',
            detail = format('provider is %s.', coalesce(quote_literal(_check_provider.provider),
                'null')),
            hint = 'The provider says how the embedder runs the model, such as '
            'sentence-transformers.';
    end if;
    if v_meant <> _check_provider.provider then
        raise exception 'provider "%" is called % here', _check_provider.provider, v_meant using
            errcode = 'invalid_parameter_value',
            detail = 'sentence-transformers is for models that run in the embedder, openai for '
            'everything that answers /v1/embeddings: OpenAI, Azure, Ollama, TEI, vLLM.',
            hint = format('Say provider => %L.', v_meant);
    end if;
end
$$;

comment on function rag._check_provider(text) is
    'Raise the error for a provider that is none, or that has another name here.';

create or replace function rag._check_settings(provider text, settings jsonb)
    returns void
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_key text;
    v_value jsonb;
    v_rule text;
    v_known text;
begin
    if jsonb_typeof(_check_settings.settings) is distinct from 'object' then
        raise exception 'settings is not an object' using
            errcode = 'invalid_parameter_value',
            detail = format('It is of type %s.',
                coalesce(jsonb_typeof(_check_settings.settings), 'null')),
            hint = 'Settings are a JSON object, such as {"model": "…", "url": "https://…"}.';
    end if;
    v_key := rag._secret_setting(_check_settings.settings);
    if v_key is not null then
        raise exception 'settings must not hold a secret' using
            errcode = 'invalid_parameter_value',
            detail = format('The key "%s" looks like one.', v_key),
            hint = 'Give keys and passwords to the embedder in its environment: everybody who '
            'searches may read rag.models, and so does every backup.';
    end if;
    if _check_settings.provider not in ('sentence-transformers', 'openai') then
        return;
    end if;
    if _check_settings.provider = 'openai' and not _check_settings.settings ? 'url' then
        raise exception 'the setting url is missing' using
            errcode = 'invalid_parameter_value',
            detail = 'The provider openai posts texts to that URL.',
            hint = 'settings => ''{"url": "https://api.openai.com/v1"}''';
    end if;
    select s.key, s.value, r.rule, k.keys into v_key, v_value, v_rule, v_known
    from jsonb_each(_check_settings.settings) as s
    left join rag._setting_rules() as r
        on r.provider = _check_settings.provider and r.key = s.key
    cross join (
        select string_agg(o.key, ', ' order by o.key) as keys
        from rag._setting_rules() as o
        where o.provider = _check_settings.provider
    ) as k
    where
        case jsonb_typeof(s.value)
            when r.type then case r.type
                when 'string' then s.value #>> '{}' !~* r.pattern
                when 'number' then (s.value #>> '{}')::numeric not between r.minimum and 1e7
                else false
            end
            else true
        end
    order by r.rule is null desc, s.key
    limit 1;
    if v_key is null then
        return;
    end if;
    if v_rule is null then
        raise exception 'unknown setting "%"', v_key using
            errcode = 'invalid_parameter_value',
            detail = format('The provider %s has %s.', _check_settings.provider, v_known),
            hint = 'Leave it out, or mind its spelling.';
    end if;
    raise exception 'invalid setting "%"', v_key using
        errcode = 'invalid_parameter_value',
        detail = format('It is %s.', v_value),
        hint = format('It must be %s.', v_rule);
end
$$;

comment on function rag._check_settings(text, jsonb) is
    'Raise the error for settings that the provider does not understand, or that hold a secret.';

create or replace function rag._setting_rules()
    returns table (
        provider text, key text, type text, pattern text, minimum numeric, rule text
    )
    language sql
    immutable
    parallel safe
    security invoker
    rows 12
    set search_path = pg_catalog, public, pg_temp
as $$
    values
    ('sentence-transformers', 'model', 'string', '\S', null::numeric,
        'an id of the Hugging Face hub or a folder'),
    ('sentence-transformers', 'max_tokens', 'number', null, 1, 'a number from 1'),
    ('openai', 'url', 'string', '^https?://[^/@?#[:space:]]+([/?][^#[:space:]]*)?$', null,
        'a URL like "https://api.openai.com/v1", without user and password'),
    ('openai', 'model', 'string', '\S', null, 'the name that the provider knows the model by'),
    ('openai', 'api_version', 'string', '^\S+$', null, 'Azure''s version, like "2024-10-21"'),
    ('openai', 'key_header', 'string', '^[a-z0-9-]+$', null, 'the name of a header'),
    ('openai', 'encoding', 'string', '^(float|base64)$', null, '"float" or "base64"'),
    ('openai', 'send_dimensions', 'boolean', null, null, 'true or false'),
    ('openai', 'max_tokens', 'number', null, 0, 'a number from 0 (no limit)'),
    ('openai', 'batch_tokens', 'number', null, 1, 'a number from 1'),
    ('openai', 'texts_per_request', 'number', null, 1, 'a number from 1'),
    ('openai', 'timeout', 'number', null, 0.1, 'a number of seconds from 0.1')
$$;

comment on function rag._setting_rules() is
    'The settings of the providers that the embedder has, and what they may be.';

create or replace function rag._secret_setting(settings jsonb)
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- Many may read the table of models, and backups hold it.
    with recursive
    parts as (
        select e.key, e.value
        from jsonb_each(settings) as e
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

    select s.key
    from parts as s
    where
        s.key ~* '(api[_-]?key|secret|password|passwd|pwd|credentials?|authorization|bearer)$'
        or s.key ~* '(^|[_-]|access|auth)(key|token|auth)$'
        or s.value #>> '{}' ~* '^[a-z][a-z0-9+.-]*://[^/@]*:[^/@]*@'
        or s.value #>> '{}' ~* '[?&](api[_-]?key|key|token|sig|secret|password|code)='
        or s.value #>> '{}' ~* '^(sk-|bearer )'
    order by s.key
    limit 1
$$;

comment on function rag._secret_setting(jsonb) is
    'A key of settings, however deep, whose name or value looks like a secret; or null.';

create or replace function rag._has_embeddings(model_id int)
    returns boolean
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_table regclass;
    v_is_found boolean := false;
begin
    -- Not all of its tables at once: there may be more of them than the server has locks for.
    for v_table in
        select i.inhrelid::regclass
        from pg_inherits as i
        where
            i.inhparent = format('rag_data.embeddings_m%s', _has_embeddings.model_id)::regclass
            and pg_relation_size(i.inhrelid) > 0
    loop
        execute format('select exists (select from %s)', v_table) into v_is_found;
        exit when v_is_found;
    end loop;
    return v_is_found;
end
$$;

comment on function rag._has_embeddings(int) is 'Whether there is any embedding by a model.';

create or replace function rag.alter_model(
    name text,
    settings jsonb default null,
    query_prefix text default null,
    document_prefix text default null,
    provider text default null,
    revision text default null,
    force boolean default false
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
    v_old rag.models := rag._model(alter_model.name);
    v_new rag.models;
    v_changed text[];
begin
    if jsonb_typeof(alter_model.settings) <> 'object' then
        -- The error for it.
        perform rag._check_settings(v_old.provider, alter_model.settings);
    end if;
    perform rag._own_models();
    v_old := rag._model(alter_model.name);
    v_new := v_old;
    v_new.provider := coalesce(alter_model.provider, v_old.provider);
    v_new.revision := coalesce(alter_model.revision, v_old.revision);
    v_new.query_prefix := coalesce(alter_model.query_prefix, v_old.query_prefix);
    v_new.document_prefix := coalesce(alter_model.document_prefix, v_old.document_prefix);
    -- What is null is taken away.
    v_new.settings := jsonb_strip_nulls(v_old.settings || coalesce(alter_model.settings, '{}'));
    if v_new = v_old then
        return false;
    end if;
    perform rag._check_provider(v_new.provider);
    perform rag._check_settings(v_new.provider, v_new.settings);

    v_changed := array_remove(array[
        case when v_new.provider <> v_old.provider then 'provider' end,
        case when v_new.revision is distinct from v_old.revision then 'revision' end,
        case when v_new.document_prefix <> v_old.document_prefix then 'document_prefix' end,
        case
            when v_new.settings -> 'model' is distinct from v_old.settings -> 'model'
            then 'settings.model'
        end,
        case
            when v_new.settings -> 'max_tokens' is distinct from v_old.settings -> 'max_tokens'
            then 'settings.max_tokens'
        end,
        case
            when v_new.settings -> 'send_dimensions'
            is distinct from v_old.settings -> 'send_dimensions'
            then 'settings.send_dimensions'
        end
    ], null);
    if v_changed <> '{}'
        and not coalesce(alter_model.force, false)
        and rag._has_embeddings(v_old.model_id)
    then
        raise exception 'model "%" has embeddings already', v_old.name using
            errcode = 'object_not_in_prerequisite_state',
            detail = format('Another %s makes other vectors, and these must not be compared with '
                'those that are there.', array_to_string(v_changed, ', ')),
            hint = 'Add another model by rag.add_model and change over to it. If you are sure '
            'that the vectors stay the same, such as those of one model served elsewhere: '
            'force => true.';
    end if;
    update rag.models as m
    set
        provider = v_new.provider,
        revision = v_new.revision,
        query_prefix = v_new.query_prefix,
        document_prefix = v_new.document_prefix,
        settings = v_new.settings
    where m.model_id = v_old.model_id;
    if v_changed <> '{}' then
        -- A claim under way may embed by what was; and embedders look at the models each second.
        perform
        from rag.jobs as j
        where j.model_id = v_old.model_id and j.lease_token is not null
        order by j.job_id
        for update;
        update rag.jobs as j
        set
            lease_token = null,
            due_at = greatest(
                case when j.lease_token is null then j.due_at end,
                clock_timestamp() + interval '5 seconds'
            )
        where
            j.model_id = v_old.model_id
            and j.failed_at is null
            and (
                j.lease_token is not null
                or j.due_at < clock_timestamp() + interval '5 seconds'
            );
        if not coalesce(alter_model.force, false) then
            delete from rag.word_vector_sets as s where s.model_id = v_old.model_id;
            update rag.models as m
            set word_vector_set = null
            where m.model_id = v_old.model_id;
        end if;
    end if;
    if v_changed <> '{}' and not coalesce(alter_model.force, false)
        or v_new.query_prefix <> v_old.query_prefix
    then
        delete from rag.query_embeddings as e where e.model_id = v_old.model_id;
        delete from rag.queries as q where q.model_id = v_old.model_id;
    end if;
    perform rag._ring();
    return true;
end
$$;

comment on function rag.alter_model(text, jsonb, text, text, text, text, boolean) is
    'Change what a model''s provider must know; embedders follow within a second. Settings that '
    'are given replace those of the same keys, null takes one away. What would make other vectors '
    'is refused once there are embeddings, unless forced. False if nothing changed.';
