-- Text to chunks: functions of their arguments; only counting tokens reads a table, the vocabulary.
--
-- A strategy is an outline: rows that say where a run of text starts and ends, which headings it
-- stands under and what in it is to be kept in one piece. rag._split does the rest for all.

create or replace function rag._chunk(
    content text, strategy text, size int, overlap int, separators text[], vocabulary int
)
    returns table (
        ordinal int,
        body text,
        start_offset int,
        end_offset int,
        heading_path text[],
        start_byte int,
        end_byte int
    )
    language plpgsql
    stable
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
    v_lead int;
    v_run record;
    v_keep_starts int[] := '{}';
    v_keep_ends int[] := '{}';
    v_unit_starts int[];
    v_unit_sums int[];
begin
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
        -- A token has a character at least.
        and (strategy <> 'markdown' or content !~ v_any_heading)
    then
        body := substr(content, start_offset + 1, end_offset - start_offset);
        start_byte := octet_length(left(content, start_offset));
        end_byte := start_byte + octet_length(body);
        return next;
        return;
    end if;

    v_bytes := convert_to(content, 'UTF8');
    v_start_byte := octet_length(left(content, start_offset));
    v_end_byte := octet_length(v_bytes) - octet_length(right(content, v_length - end_offset));
    if strategy = 'sentence' then
        select
            coalesce(array_agg(s.start_offset order by s.start_offset), '{}'),
            coalesce(array_agg(s.end_offset order by s.start_offset), '{}')
        into v_keep_starts, v_keep_ends
        from rag._sentences(content) as s
        where s.end_offset - s.start_offset <= size;
    elsif strategy = 'code' then
        select k.starts, k.ends into v_keep_starts, v_keep_ends
        from rag._code_blocks(content, size) as k;
    elsif strategy = 'token' then
        select u.starts, u.sums into v_unit_starts, v_unit_sums
        from rag._token_units(content, vocabulary) as u;
    end if;
    for v_run in
        select
            start_offset as start_offset,
            end_offset as end_offset,
            v_start_byte as start_byte,
            v_end_byte as end_byte,
            '{}'::text[] as heading_path,
            null::int as next_offset,
            null::text[] as next_path,
            v_keep_starts as keep_starts,
            v_keep_ends as keep_ends,
            array_fill(strategy = 'code', array[cardinality(v_keep_starts)]) as keep_lines
        where strategy <> 'markdown'
        union all
        select o.*
        from rag._markdown_outline(content, size) as o
        where strategy = 'markdown'
    loop
        -- A variable of its own, because a query that a loop reads from copies its parameters: of
        -- v_bytes it would copy the whole document for every run.
        v_part := substr(v_bytes, v_run.start_byte + 1, v_run.end_byte - v_run.start_byte);
        if v_run.end_offset - v_run.start_offset <= size and strategy <> 'token' then
            v_text := convert_from(v_part, 'UTF8');
            body := ltrim(v_text, v_spaces);
            start_offset := v_run.start_offset + length(v_text) - length(body);
            v_lead := octet_length(v_text) - octet_length(body);
            body := rtrim(body, v_spaces);
            end_offset := start_offset + length(body);
            start_byte := v_run.start_byte + v_lead;
            end_byte := start_byte + octet_length(body);
            heading_path := v_run.heading_path;
            return next;
            ordinal := ordinal + 1;
            continue;
        end if;
        for start_offset, end_offset, start_byte, end_byte, body in
            select
                p.start_offset, p.end_offset, v_run.start_byte + p.start_byte,
                v_run.start_byte + p.end_byte, p.body
            from rag._split(
                v_part,
                v_run.start_offset,
                v_run.end_offset,
                v_run.keep_starts,
                v_run.keep_ends,
                v_run.keep_lines,
                size,
                overlap,
                strategy = 'code',
                strategy = 'sentence',
                separators,
                v_unit_starts,
                v_unit_sums
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

comment on function rag._chunk(text, text, int, int, text[], int) is
    'rag.chunk with checked settings and before small chunks are merged, under column names that '
    'PL/pgSQL can tell from the parameters; bytes are places in the text as UTF-8.';
