-- Keys of signed tokens: added, retired, listed. A key is never shown again and never changed.

create or replace function rag._hmac_block(secret bytea, pad int)
    returns bytea
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_block bytea := case
        when octet_length(_hmac_block.secret) > 64 then sha256(_hmac_block.secret)
        else _hmac_block.secret
    end;
begin
    v_block := v_block || decode(repeat('00', 64 - octet_length(v_block)), 'hex');
    for i in 0..63 loop
        v_block := set_byte(v_block, i, get_byte(v_block, i) # _hmac_block.pad);
    end loop;
    return v_block;
end
$$;

comment on function rag._hmac_block(bytea, int) is
    'RFC 2104: the secret as a block of 64 bytes, each xor the pad (0x36 within, 0x5c without).';

create or replace function rag.add_token_key(
    name text,
    secret bytea default null,
    audience text default 'ragdb',
    tenants text[] default null,
    max_lifetime interval default '1 day'
)
    returns bytea
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    -- 122 random bits each
    v_secret bytea := coalesce(
        add_token_key.secret, sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
    );
    v_tenants int[];
begin
    if add_token_key.name is null then
        perform rag._refuse_null('key');
    end if;
    if length(add_token_key.name) not between 1 and 200
        or length(add_token_key.audience) not between 1 and 200
        or add_token_key.audience is null
    then
        raise exception 'invalid name or audience of a key' using
            errcode = 'invalid_parameter_value',
            detail = format('The name is %L, the audience %L.', add_token_key.name,
                add_token_key.audience),
            hint = 'Both have 1 to 200 characters: kid and aud of the tokens.';
    end if;
    if octet_length(v_secret) not between 32 and 1000
        or (
            select count(distinct get_byte(v_secret, n)) < 10
            from generate_series(0, octet_length(v_secret) - 1) as n
        )
    then
        raise exception 'the secret is too weak' using
            errcode = 'invalid_parameter_value',
            detail = format('It has %s bytes.', octet_length(v_secret)),
            hint = 'Give 32 to 1,000 random bytes, or none: then they are made here.';
    end if;
    if add_token_key.max_lifetime is null
        or add_token_key.max_lifetime <= interval '0'
        or add_token_key.max_lifetime > interval '1 year'
    then
        raise exception 'invalid max_lifetime' using
            errcode = 'invalid_parameter_value',
            detail = format('It is %s.', coalesce(add_token_key.max_lifetime::text, 'null')),
            hint = 'It is how long a token may hold, more than nothing and at most a year.';
    end if;
    if add_token_key.tenants is not null then
        v_tenants := array(
            select rag._tenant_id(t.name) from unnest(add_token_key.tenants) as t (name)
        );
    end if;
    insert into rag.token_keys (
        name, audience, tenants, max_lifetime, inner_block, outer_block, seal
    )
    values (
        add_token_key.name, add_token_key.audience, v_tenants, add_token_key.max_lifetime,
        -- 0x36 and 0x5c
        rag._hmac_block(v_secret, 54), rag._hmac_block(v_secret, 92),
        sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
    )
    on conflict on constraint token_keys_name_key do nothing;
    if not found then
        raise exception 'key "%" exists already', add_token_key.name using
            errcode = 'duplicate_object',
            detail = 'A key is never changed.',
            hint = 'Add one of another name, sign with that, and retire this one by '
            'rag.retire_token_key(name) when its last token has expired.';
    end if;
    return v_secret;
end
$$;

comment on function rag.add_token_key(text, bytea, text, text[], interval) is
    'Add a key that tokens are signed with (its name is their kid), for all tenants or for those '
    'named; returns the secret, which is made here if none is given and never shown again.';

create or replace function rag.retire_token_key(name text)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    if retire_token_key.name is null then
        perform rag._refuse_null('key');
    end if;
    delete from rag.token_keys as k where k.name = retire_token_key.name;
    return found;
end
$$;

comment on function rag.retire_token_key(text) is
    'Forget a key: its tokens are refused from now on, and so is who came in by one; false if '
    'there is none of that name.';

create or replace function rag.list_token_keys()
    returns table (
        name text,
        audience text,
        tenants text[],
        max_lifetime interval,
        created_at timestamptz
    )
    language sql
    stable
    parallel safe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        k.name,
        k.audience,
        case
            when k.tenants is not null then array(
                select t.name
                from rag.tenants as t
                where t.tenant_id = any(k.tenants)
                order by t.name
            )
        end,
        k.max_lifetime,
        k.created_at
    from rag.token_keys as k
    order by k.created_at, k.name
$$;

comment on function rag.list_token_keys() is
    'The keys of signed tokens, oldest first, without their secrets.';
