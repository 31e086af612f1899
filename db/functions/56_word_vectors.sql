-- Word vectors as the embedder learns and stores them.

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
    -- Before the set: who changes models (rag._own_models) has them first, too.
    lock table rag.models in row exclusive mode;
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
    -- Where searches look, who read the model anyway.
    update rag.models as m
    set word_vector_set = s.set_id
    from rag.word_vector_sets as s
    where s.set_id = activate_word_vectors.set_id and m.model_id = s.model_id;
    return true;
end
$$;

comment on function rag.activate_word_vectors(int) is
    'Put a set of word vectors into use and drop the one before, in one step; false if another '
    'worker has taken over.';
