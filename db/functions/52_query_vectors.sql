-- The query's embedding where no model is near: the exact one of a query seen before, or the sum
-- of the vectors of its words.
--
-- The embedder learns the word vectors so that their sum lands where the model would put the text
-- (embedder/word_vectors.py). Their vocabulary is the model's own, and what they are learned from
-- is public: nobody's words are in them.

create or replace function rag._query_tokens(query text)
    returns text[]
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- As embedder/word_vectors.py cuts its texts. Spaces and punctuation by code point: what
    -- [:punct:] means depends on the locale. Models read no more than some hundred words.
    select (array_remove(regexp_split_to_array(
        lower(rag._fold_accents(left(query, 4000))),
        U&'[\0001-/:-@[-`{-\00BF\2000-\206F\3000-\303F]+'
    ), ''))[:256]
$$;

comment on function rag._query_tokens(text) is
    'The words of a query, without case, accents and punctuation, in their order.';

create or replace function rag._word_pieces(set_id int, word text)
    returns text[]
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    -- No name or word is longer; what is (a hash, a text without spaces) says little.
    v_length int := least(length(_word_pieces.word), 60);
    v_start int := 1;
    v_piece text;
    v_pieces text[] := '{}';
begin
    while v_start <= v_length loop
        -- The longest that is known; no vocabulary has pieces beyond 20 letters worth a look.
        select w.word into v_piece
        from rag.word_vectors as w
        where
            w.set_id = _word_pieces.set_id
            and w.word = any(array(
                select
                    case when v_start > 1 then '##' else '' end
                    || substr(_word_pieces.word, v_start, n)
                from generate_series(1, least(20, v_length - v_start + 1)) as n
            ))
        order by length(w.word) desc
        limit 1;
        if found then
            v_pieces := v_pieces || v_piece;
            v_start := v_start + length(v_piece) - case when v_start > 1 then 2 else 0 end;
        else
            v_start := v_start + 1;
        end if;
    end loop;
    return v_pieces;
end
$$;

comment on function rag._word_pieces(int, text) is
    'The known pieces of a word, by greedy longest match; letters that no piece begins with are '
    'left out.';

create or replace function rag._sum_word_vectors(model_id int, query text)
    returns vector
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_set int := (
        select s.set_id
        from rag.word_vector_sets as s
        where s.model_id = _sum_word_vectors.model_id and s.is_current
    );
    v_tokens text[];
    v_sum vector;
    v_rest vector;
    v_unknown text[];
begin
    if v_set is null then
        return null;
    end if;
    v_tokens := rag._query_tokens(_sum_word_vectors.query);
    select sum(w.embedding::vector), array_agg(t.word) filter (where w.word is null)
    into v_sum, v_unknown
    from unnest(v_tokens) as t (word)
    left join rag.word_vectors as w on w.set_id = v_set and w.word = t.word;
    if v_unknown is not null then
        select sum(w.embedding::vector) into v_rest
        from unnest(v_unknown) as t (word)
        cross join lateral unnest(rag._word_pieces(v_set, t.word)) as p (piece)
        join rag.word_vectors as w on w.set_id = v_set and w.word = p.piece;
        v_sum := coalesce(v_sum + v_rest, v_sum, v_rest);
    end if;
    return case when vector_norm(v_sum) > 0 then l2_normalize(v_sum) end;
end
$$;

comment on function rag._sum_word_vectors(int, text) is
    'The embedding of a query by its words'' vectors, of length 1; null when none is known.';

create or replace function rag._query_hash(query text)
    returns uuid
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select rag._hash(btrim(query, E' \t\r\n'))
$$;

comment on function rag._query_hash(text) is
    'The key of a query in the cache: spaces around it do not matter.';

create or replace function rag._cached_embedding(tenant_id int, model_id int, query text)
    returns vector
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select e.embedding::vector
    from rag.query_embeddings as e
    where
        e.tenant_id = _cached_embedding.tenant_id
        and e.model_id = _cached_embedding.model_id
        and e.query_hash = rag._query_hash(_cached_embedding.query)
        and e.expires_at > clock_timestamp()
$$;

comment on function rag._cached_embedding(int, int, text) is
    'The exact embedding of a query that the tenant asked before, or null.';

create or replace function rag._embed_query(tenant_id int, model_id int, query text)
    returns vector
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select coalesce(
        rag._cached_embedding(tenant_id, model_id, query),
        rag._sum_word_vectors(model_id, query)
    )
$$;

comment on function rag._embed_query(int, int, text) is
    'The embedding of a query without its model: from the cache or by its words; null for neither.';

create or replace function rag._query_embedding(
    tenant_id int,
    model rag.models,
    query text,
    given vector,
    out kind text,
    out embedding halfvec
)
    returns record
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_model int := (_query_embedding.model).model_id;
    v_vector vector;
begin
    if _query_embedding.given is not null then
        kind := 'given';
        embedding := rag._query_vector(_query_embedding.given, _query_embedding.model);
        return;
    end if;
    kind := 'cached';
    v_vector := rag._cached_embedding(
        _query_embedding.tenant_id, v_model, _query_embedding.query
    );
    if v_vector is null then
        kind := 'words';
        v_vector := rag._sum_word_vectors(v_model, _query_embedding.query);
    end if;
    if v_vector is null then
        kind := 'none';
        return;
    end if;
    embedding := v_vector::halfvec;
end
$$;

comment on function rag._query_embedding(int, rag.models, text, vector) is
    'What the semantic leg searches with, the best there is: given (the caller''s vector), cached '
    '(the model''s own for this text), words (the sum of the words'' vectors), or none.';

create or replace function rag._feedback_depth()
    returns int
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select 10
$$;

comment on function rag._feedback_depth() is
    'How many of the lexical leg''s best passages tell what the words of a query mean here.';

create or replace function rag._with_feedback(
    tenant_id int,
    partition_id int,
    model_id int,
    query halfvec,
    chunks bigint[],
    scores double precision[]
)
    returns halfvec
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_query vector := l2_normalize(_with_feedback.query::vector);
    v_passages vector;
begin
    -- Passages count by the square of their score: the first alone where it stands out.
    select
        l2_normalize(sum(e.embedding::vector * array_fill(
            power(s.score / _with_feedback.scores[1], 2)::real,
            array[vector_dims(e.embedding)]
        )::vector))
    into v_passages
    from rag.embeddings as e
    cross join lateral (
        select _with_feedback.scores[
            array_position(_with_feedback.chunks, e.chunk_id)
        ] as score
    ) as s
    where
        e.model_id = _with_feedback.model_id
        and e.partition_id = _with_feedback.partition_id
        and e.tenant_id = _with_feedback.tenant_id
        and e.chunk_id = any(_with_feedback.chunks[:rag._feedback_depth()]);
    -- Rocchio (1971), two parts words to one part passages: measured on eight sets of judged
    -- questions the semantic leg comes from 53 to 90 % of what it is with the model's own embedding
    -- to 99 % and more, while the hybrid stays at 94.9 to 100 % of itself.
    return coalesce(l2_normalize(v_query + v_query + v_passages)::halfvec, _with_feedback.query);
end
$$;

comment on function rag._with_feedback(
    int, int, int, halfvec, bigint[], double precision[]
) is
    'A query''s vector from its words, led by the exact embeddings of the tenant''s own passages '
    'that hold these words (the best of the chunks given, with their scores): what learning word '
    'vectors from a tenant''s texts would gain, without storing anything.';

-- Filling the cache ----------------------------------------------------------------------------

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
    v_tenant int;
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
    select c.tenant_id into v_tenant from rag._context() as c;
    v_model := (rag._active_model(v_tenant)).model_id;
    perform
    from rag.tenants as t
    where t.tenant_id = v_tenant and t.query_cache_size > 0;
    if not found or v_model is null then
        return false;
    end if;
    if rag._cached_embedding(v_tenant, v_model, prepare_query.query) is not null then
        return true;
    end if;
    v_hash := rag._query_hash(prepare_query.query);
    perform
    from rag.queries as q
    where q.tenant_id = v_tenant and q.model_id = v_model and q.query_hash = v_hash;
    if found then
        return true;
    end if;
    perform from rag.queries as q where q.tenant_id = v_tenant offset v_waiting - 1 limit 1;
    if found then
        -- Nobody embeds them, it seems; then the newer ones are of more use than the old.
        delete from rag.queries as q
        using (
            select o.query_id
            from rag.queries as o
            where o.tenant_id = v_tenant and o.created_at < clock_timestamp() - v_stale
            for update skip locked
        ) as old
        where q.tenant_id = v_tenant and q.query_id = old.query_id;
        if not found then
            return false;
        end if;
    end if;
    insert into rag.queries (tenant_id, model_id, query_hash, query)
    values (v_tenant, v_model, v_hash, btrim(prepare_query.query, E' \t\r\n'));
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
                where t.tenant_id = o.tenant_id and t.query_cache_size > 0
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

-- Learning word vectors ------------------------------------------------------------------------

create or replace function rag.begin_word_vectors(
    worker text, model text, recipe text, lease interval default '2 minutes'
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
    v_now timestamptz := clock_timestamp();
    v_model int;
    v_set int;
begin
    perform rag._check_lease(begin_word_vectors.lease);
    if coalesce(length(begin_word_vectors.recipe), 0) not between 1 and 200 then
        raise exception 'invalid recipe' using
            errcode = 'invalid_parameter_value',
            detail = format('recipe is %L.', begin_word_vectors.recipe),
            hint = 'It is a name of 1 to 200 characters that changes with what is learned.';
    end if;
    select m.model_id into v_model
    from rag.models as m
    where m.name = begin_word_vectors.model;
    if not found then
        raise exception 'model "%" does not exist', begin_word_vectors.model using
            errcode = 'RG005',
            detail = format('No row of rag.models has the name %L.', begin_word_vectors.model),
            hint = 'select name from rag.models lists them.';
    end if;
    perform
    from rag.word_vector_sets as s
    where
        s.model_id = v_model
        and (
            s.is_current and s.recipe = begin_word_vectors.recipe
            or not s.is_current and s.due_at > v_now
        );
    if found then
        return null;
    end if;
    -- A worker that vanished leaves half a set behind, which is of no use to the next.
    delete from rag.word_vector_sets as s
    using (
        select o.set_id
        from rag.word_vector_sets as o
        where o.model_id = v_model and not o.is_current and o.due_at <= v_now
        for update skip locked
    ) as lost
    where s.set_id = lost.set_id;
    insert into rag.word_vector_sets (model_id, recipe, worker, due_at)
    values (
        v_model, begin_word_vectors.recipe, begin_word_vectors.worker,
        v_now + begin_word_vectors.lease
    )
    on conflict do nothing
    returning set_id into v_set;
    return v_set;
end
$$;

comment on function rag.begin_word_vectors(text, text, text, interval) is
    'Begin to learn a model''s word vectors: the id of the new set, or null if there is nothing to '
    'do, because those in use are of this recipe or another worker is at it.';

create or replace function rag._hold_word_vectors(set_id int)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    perform
    from rag.word_vector_sets as s
    where s.set_id = _hold_word_vectors.set_id and not s.is_current
    for update;
    return found;
end
$$;

comment on function rag._hold_word_vectors(int) is
    'Lock a set that is being learned; false if it is gone or already in use.';

create or replace function rag.extend_word_vectors(
    set_id int, progress real, lease interval default '2 minutes'
)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    perform rag._check_lease(extend_word_vectors.lease);
    update rag.word_vector_sets as s
    set
        progress = greatest(s.progress, least(1, extend_word_vectors.progress)),
        due_at = clock_timestamp() + extend_word_vectors.lease
    where s.set_id = extend_word_vectors.set_id and not s.is_current;
    return found;
end
$$;

comment on function rag.extend_word_vectors(int, real, interval) is
    'Heartbeat of who learns a set, with the share that is done; false if another has taken over.';

create or replace function rag.put_word_vectors(
    set_id int, words text[], embeddings vector[]
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
    v_rows int;
    v_dimensions int;
begin
    if put_word_vectors.words is null
        or put_word_vectors.embeddings is null
        or cardinality(put_word_vectors.words) <> cardinality(put_word_vectors.embeddings)
    then
        raise exception 'words and embeddings differ in length' using
            errcode = 'invalid_parameter_value',
            detail = format('%s words and %s embeddings.',
                coalesce(cardinality(put_word_vectors.words), 0),
                coalesce(cardinality(put_word_vectors.embeddings), 0)),
            hint = 'Give one embedding for each word, in the same order.';
    end if;
    if not rag._hold_word_vectors(put_word_vectors.set_id) then
        return 0;
    end if;
    select m.dimensions into v_dimensions
    from rag.word_vector_sets as s
    join rag.models as m on m.model_id = s.model_id
    where s.set_id = put_word_vectors.set_id;
    if exists (
        select
        from unnest(put_word_vectors.embeddings) as g (embedding)
        where g.embedding is null or vector_dims(g.embedding) <> v_dimensions
    ) then
        raise exception 'a word vector has the wrong number of dimensions' using
            errcode = 'invalid_parameter_value',
            detail = format('The model of set %s has %s.', put_word_vectors.set_id, v_dimensions),
            hint = 'All vectors of a set are of its model''s size.';
    end if;
    insert into rag.word_vectors (set_id, word, embedding)
    select put_word_vectors.set_id, g.word, g.embedding::halfvec
    from unnest(put_word_vectors.words, put_word_vectors.embeddings) as g (word, embedding)
    on conflict (set_id, word) do update set embedding = excluded.embedding;
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;

comment on function rag.put_word_vectors(int, text[], vector[]) is
    'Hand in word vectors of a set that is being learned; nobody sees them before '
    'rag.activate_word_vectors. Returns how many, 0 if another has taken over.';

create or replace function rag.activate_word_vectors(set_id int)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_words int;
begin
    if not rag._hold_word_vectors(activate_word_vectors.set_id) then
        return false;
    end if;
    select count(*) into v_words
    from rag.word_vectors as w
    where w.set_id = activate_word_vectors.set_id;
    if v_words = 0 then
        raise exception 'set % has no word vectors', activate_word_vectors.set_id using
            errcode = 'object_not_in_prerequisite_state',
            detail = 'Searches would know no word any more.',
            hint = 'Hand them in by rag.put_word_vectors first.';
    end if;
    -- The old set goes with its vectors. A search that is reading it has it in its snapshot.
    delete from rag.word_vector_sets as s
    using rag.word_vector_sets as n
    where
        n.set_id = activate_word_vectors.set_id
        and s.model_id = n.model_id
        and s.is_current;
    update rag.word_vector_sets as s
    set
        is_current = true,
        progress = 1,
        words = v_words,
        completed_at = clock_timestamp()
    where s.set_id = activate_word_vectors.set_id;
    return true;
end
$$;

comment on function rag.activate_word_vectors(int) is
    'Put a set of word vectors into use and drop the one before, in one step; false if another '
    'worker has taken over.';
