-- Text to chunks: pure functions of their arguments, no table is read.
--
-- A strategy is an outline: rows that say where a run of text starts and ends, which headings it
-- stands under and what in it is to be kept in one piece. rag._split does the rest for all.

create or replace function rag._chunk(content text, strategy text, size int, overlap int)
    returns table (
        ordinal int,
        body text,
        start_offset int,
        end_offset int,
        heading_path text[]
    )
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- A plan made for the parameters at hand would hold one more copy of the document.
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_variable
declare
    v_spaces constant text := rag._whitespace();
    v_text text;
    v_bytes bytea;
    v_start_byte int;
    v_end_byte int;
    v_part bytea;
    v_length int;
    v_reach int := 1000;
    v_any_heading constant text :=
        '(?n)^(?:\ufeff| {0,3})#{1,6}[ \t]|^ {0,3}(?:=+|-+)[ \t\r]*$';
    v_run record;
begin
    if strategy is null or strategy not in ('recursive', 'markdown', 'none') then
        raise exception 'unknown chunking strategy'
            using
                errcode = '22023',
                detail = format('strategy is %L', strategy),
                hint = 'The strategies are recursive, markdown and none.';
    end if;
    if size is null or size not between 50 and 100000 then
        raise exception 'chunk size out of range'
            using
                errcode = '22023',
                detail = format('size is %s', coalesce(size::text, 'null')),
                hint = 'Give a size of 50 to 100000 characters; 500 to 1000 suits most models.';
    end if;
    if overlap is null or overlap < 0 or overlap >= size / 2.0 then
        raise exception 'chunk overlap out of range'
            using
                errcode = '22023',
                detail = format('overlap is %s, size is %s', coalesce(overlap::text, 'null'), size),
                hint = 'Give an overlap of 0 or more characters, less than half of the size.';
    end if;

    if content is null then
        return;
    end if;
    -- A stored text is compressed, and each look at it would unpack it anew: 0.2 s for 50 MB.
    content := content || '';

    -- Where the text without the white space around it lies. It is looked for in windows, because
    -- btrim() of a whole text takes 12 bytes of memory per character.
    v_length := length(content);
    loop
        v_text := ltrim(left(content, v_reach), v_spaces);
        exit when v_text <> '' or v_reach >= v_length;
        v_reach := v_reach * 8;
    end loop;
    if v_text = '' then
        return;
    end if;
    start_offset := least(v_reach, v_length) - length(v_text);
    v_reach := 1000;
    loop
        v_text := rtrim(right(content, v_reach), v_spaces);
        exit when v_text <> '';
        v_reach := v_reach * 8;
    end loop;
    end_offset := v_length - least(v_reach, v_length) + length(v_text);
    ordinal := 0;
    heading_path := '{}';

    if strategy = 'none'
        or end_offset - start_offset <= size
        and (strategy = 'recursive' or content !~ v_any_heading)
    then
        body := substr(content, start_offset + 1, end_offset - start_offset);
        return next;
        return;
    end if;

    v_bytes := convert_to(content, 'UTF8');
    v_start_byte := octet_length(left(content, start_offset));
    v_end_byte := octet_length(v_bytes) - octet_length(right(content, v_length - end_offset));
    for v_run in
        select
            start_offset as start_offset,
            end_offset as end_offset,
            v_start_byte as start_byte,
            v_end_byte as end_byte,
            '{}'::text[] as heading_path,
            null::int as next_offset,
            null::text[] as next_path,
            '{}'::int[] as keep_starts,
            '{}'::int[] as keep_ends,
            '{}'::boolean[] as keep_lines
        where strategy = 'recursive'
        union all
        select o.*
        from rag._markdown_outline(content, size) as o
        where strategy = 'markdown'
    loop
        -- A variable of its own, because a query that a loop reads from copies its parameters: of
        -- v_bytes it would copy the whole document for every run.
        v_part := substr(v_bytes, v_run.start_byte + 1, v_run.end_byte - v_run.start_byte);
        if v_run.end_offset - v_run.start_offset <= size then
            v_text := convert_from(v_part, 'UTF8');
            body := ltrim(v_text, v_spaces);
            start_offset := v_run.start_offset + length(v_text) - length(body);
            body := rtrim(body, v_spaces);
            end_offset := start_offset + length(body);
            heading_path := v_run.heading_path;
            return next;
            ordinal := ordinal + 1;
            continue;
        end if;
        for start_offset, end_offset, body in
            select p.start_offset, p.end_offset, p.body
            from rag._split(
                v_part,
                v_run.start_offset,
                v_run.end_offset,
                v_run.keep_starts,
                v_run.keep_ends,
                v_run.keep_lines,
                size,
                overlap
            ) as p
        loop
            -- A chunk has the headings of its middle.
            heading_path := case
                when (start_offset + end_offset) / 2 >= v_run.next_offset then v_run.next_path
                else v_run.heading_path
            end;
            return next;
            ordinal := ordinal + 1;
        end loop;
    end loop;
end
$$;

comment on function rag._chunk(text, text, int, int) is
    'rag.chunk under column names that PL/pgSQL can tell from the parameters.';

create or replace function rag.chunk(
    content text,
    strategy text default 'recursive',
    size int default 800,
    overlap int default 100
)
    returns table (
        ordinal int,
        content text,
        start_offset int,
        end_offset int,
        heading_path text[]
    )
    language sql
    immutable
    parallel safe
    security definer            -- so that who may call it needs no right to its private parts
    set search_path = pg_catalog, public, pg_temp
as $$
    -- By number, because a column of the result has the parameter's name. The collation makes it
    -- work, and the same, for text of any collation.
    select c.ordinal, c.body, c.start_offset, c.end_offset, c.heading_path
    from rag._chunk($1 collate "C", $2, $3, $4) as c
$$;

comment on function rag.chunk(text, text, int, int) is
    'Cuts a text into chunks of at most size characters. '
    'Strategies: recursive (at paragraphs, else lines that do not just wrap, sentences, words), '
    'markdown (the same inside sections, with the headings above each chunk; code, tables and '
    'lists stay in one piece where they fit into size; small sections under one heading are '
    'joined) and none (one chunk, whatever size says). '
    'Offsets count characters from 0: content is substr(text, start_offset + 1, end_offset - '
    'start_offset). A chunk may begin up to overlap characters before the end of the chunk before '
    'it, at a sentence or line, or, inside a paragraph, at a word; never in another section. '
    'White space around a chunk belongs to none; every other character is in a chunk. A word is '
    'only cut where it is longer than size. Null or blank text has no chunks; size is 50 to '
    '100000, overlap less than half of it, or 22023 is raised.';
