-- How texts are to be cut: what a collection or a put may ask for, and presets by kind of document.

create or replace function rag._check_chunking(
    strategy text, size int, overlap int, min_size int, separators text[]
)
    returns jsonb
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_variable
begin
    if strategy is null
        or strategy not in ('recursive', 'markdown', 'token', 'sentence', 'code', 'none')
    then
        raise exception 'unknown chunking strategy'
            using
                errcode = '22023',
                detail = format('strategy is %L', strategy),
                hint = 'The strategies are recursive, markdown, token, sentence, code and none.';
    end if;
    if size is null or size not between 50 and 100000 then
        raise exception 'chunk size out of range'
            using
                errcode = '22023',
                detail = format('size is %s', coalesce(size::text, 'null')),
                hint = 'Give a size of 50 to 100000 characters (tokens for strategy token); 500 to '
                '1000 suits most models.';
    end if;
    if overlap is null or overlap < 0 or overlap >= size / 2.0 then
        raise exception 'chunk overlap out of range'
            using
                errcode = '22023',
                detail = format('overlap is %s, size is %s', coalesce(overlap::text, 'null'), size),
                hint = 'Give an overlap of 0 or more characters, less than half of the size.';
    end if;
    if min_size is null or min_size not between 0 and size then
        raise exception 'minimum chunk size out of range'
            using
                errcode = '22023',
                detail = format(
                    'min_size is %s, size is %s', coalesce(min_size::text, 'null'), size
                ),
                hint = 'Give a minimum of 0 (nothing is merged) up to the size.';
    end if;
    if separators is not null and strategy not in ('recursive', 'token', 'code') then
        raise exception 'this strategy takes no separators'
            using
                errcode = '22023',
                detail = format('strategy is %s', strategy),
                hint = 'Separators are for recursive, token and code.';
    end if;
    if separators is not null
        and (
            cardinality(separators) not between 1 and 20
            or array_ndims(separators) <> 1
            or exists (
                select
                from unnest(separators) as s (separator)
                where
                    s.separator is null
                    or length(s.separator) not between 1 and 100
                    -- Behind a joiner or one half of a flag a character would be torn.
                    or s.separator collate "C"
                    ~ ('[\U0001f1e6-\U0001f1ff' || rag._clinging_marks() || ']')
            )
        )
    then
        raise exception 'invalid separators'
            using
                errcode = '22023',
                detail = format('separators is %L', separators),
                hint = 'Give 1 to 20 texts of 1 to 100 characters, what parts most first; none '
                'with combining marks, joiners or parts of flags.';
    end if;
    -- What is not said is left out, so that a document is not cut anew for a setting it never had.
    return jsonb_build_object('strategy', strategy, 'size', size, 'overlap', overlap)
        || case when min_size > 0 then jsonb_build_object('min_size', min_size) else '{}' end
        || case
            when separators is null then '{}'
            else jsonb_build_object('separators', separators)
        end;
end
$$;

comment on function rag._check_chunking(text, int, int, int, text[]) is
    'The settings of chunking as one value, or the error for what no text can be cut by.';

create or replace function rag.chunking_presets()
    returns table (
        preset text,
        strategy text,
        chunk_size int,
        chunk_overlap int,
        min_chunk_size int,
        separators text[]
    )
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    values
    ('documentation', 'markdown', 1500, 200, 0, null::text[]),
    ('paper', 'token', 1000, 100, 0, null),
    ('legal', 'sentence', 800, 150, 0, null),
    ('code', 'code', 2000, 300, 0, null),
    ('chat', 'sentence', 500, 50, 0, null),
    ('slides', 'markdown', 600, 100, 0, null),
    ('table', 'recursive', 1200, 0, 0, array[E'\n\n', E'\n'])
$$;

comment on function rag.chunking_presets() is
    'Settings of chunking by kind of document, for the parameter preset of puts and collections.';

create or replace function rag._separators(chunking jsonb)
    returns text[]
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select array_agg(s.separator order by s.place)
    from jsonb_array_elements_text(chunking -> 'separators')
        with ordinality as s (separator, place)
$$;

comment on function rag._separators(jsonb) is
    'The separators of chunking settings as rag._check_chunking writes them.';

create or replace function rag._chunking(
    collection rag.collections,
    preset text,
    strategy text,
    size int,
    overlap int,
    min_size int,
    separators text[]
)
    returns jsonb
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_variable
declare
    v_strategy text := coalesce((collection).strategy, 'markdown');
    v_size int := coalesce((collection).chunk_size, 800);
    v_overlap int := coalesce((collection).chunk_overlap, 100);
    v_least int := coalesce((collection).min_chunk_size, 0);
    v_separators text[] := (collection).separators;
begin
    if preset is not null then
        select p.strategy, p.chunk_size, p.chunk_overlap, p.min_chunk_size, p.separators
        into v_strategy, v_size, v_overlap, v_least, v_separators
        from rag.chunking_presets() as p
        where p.preset = _chunking.preset;
        if not found then
            raise exception 'unknown preset "%"', preset using
                errcode = 'invalid_parameter_value',
                detail = 'A preset says how a kind of document is cut.',
                hint = 'select * from rag.chunking_presets() lists them.';
        end if;
    end if;
    if strategy <> v_strategy then
        -- The others are in what the other strategy counts, or nothing that this one knows.
        v_least := 0;
        v_separators := null;
    end if;
    return rag._check_chunking(
        coalesce(strategy, v_strategy),
        coalesce(size, v_size),
        coalesce(overlap, v_overlap),
        coalesce(min_size, least(v_least, coalesce(size, v_size))),
        -- No separators: those of the strategy.
        nullif(coalesce(separators, v_separators), '{}')
    );
end
$$;

comment on function rag._chunking(
    rag.collections, text, text, int, int, int, text[]
) is
    'How to cut: what is given, else what the preset says, else the collection (null: the '
    'defaults); or the error for what does not go together.';
