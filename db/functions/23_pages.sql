-- Pages: a document whose metadata say where its pages begin has passages that know their page.

create or replace function rag._with_page(metadata jsonb, start_offset int)
    returns jsonb
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = auto
as $$
declare
    v_starts jsonb := _with_page.metadata -> 'page_starts';
    v_low int := 0;
    v_high int;
    v_middle int;
begin
    if jsonb_typeof(v_starts) <> 'array' or jsonb_typeof(v_starts -> 0) is distinct from 'number'
    then
        return _with_page.metadata;
    end if;
    -- The last page that begins at or before the offset: halving, because a book of 1,000 pages
    -- has 6,000 passages.
    v_high := jsonb_array_length(v_starts);
    while v_high - v_low > 1 loop
        v_middle := (v_low + v_high) / 2;
        if jsonb_typeof(v_starts -> v_middle) <> 'number' then
            return _with_page.metadata;
        elsif (v_starts -> v_middle)::numeric <= _with_page.start_offset then
            v_low := v_middle;
        else
            v_high := v_middle;
        end if;
    end loop;
    return (_with_page.metadata - 'page_starts') || jsonb_build_object('page', v_low + 1);
end
$$;

comment on function rag._with_page(jsonb, int) is
    'Metadata with the number of the page that holds an offset instead of where all pages begin.';

create or replace function rag._chunk_metadata(metadata jsonb, start_offset int)
    returns jsonb
    language sql
    immutable
    parallel safe
    security invoker
    return case
        when metadata ? 'page_starts' then rag._with_page(metadata, start_offset)
        else metadata
    end;

comment on function rag._chunk_metadata(jsonb, int) is
    'The metadata of a chunk that begins there: those of its document, with its page.';
