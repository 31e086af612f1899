-- Signed tokens: who is which tenant, said by somebody who holds a key (JWT, HS256).
--
-- Verified with what every Postgres has: HMAC is two sha256 (RFC 2104) of blocks that are made of
-- the secret once, when the key is added. A token that holds leaves its tenant in the setting
-- rag.authenticated under a seal: a digest with another secret, over the tenant, when it expires,
-- the role, the backend and, unless asked otherwise, the very transaction. Any role can write that
-- setting, and copy it; the seal is checked wherever the tenant is asked for.

create or replace function rag._leeway()
    returns interval
    language sql
    immutable
    parallel safe
    security invoker
return interval '10 seconds';

comment on function rag._leeway() is
    'By how much the clock of who signs a token may differ from that of the server.';

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

create or replace function rag._base64url(bytes bytea)
    returns text
    language sql
    immutable
    parallel safe
    security invoker
return rtrim(translate(encode(bytes, 'base64'), E'+/\n', '-_'), '=');

comment on function rag._base64url(bytea) is 'Base64 as RFC 7515 wants it: for URLs, no padding.';

create or replace function rag._from_base64url(code text)
    returns bytea
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_bytes bytea;
begin
    -- decode takes more than is right: spaces, padding, bits behind the last byte.
    if _from_base64url.code !~ '^[A-Za-z0-9_-]+$' or length(_from_base64url.code) % 4 = 1 then
        return null;
    end if;
    v_bytes := decode(
        rpad(
            translate(_from_base64url.code, '-_', '+/'),
            (length(_from_base64url.code) + 3) / 4 * 4, '='
        ),
        'base64'
    );
    if rag._base64url(v_bytes) <> _from_base64url.code then
        return null;
    end if;
    return v_bytes;
end
$$;

comment on function rag._from_base64url(text) is
    'What is encoded so, or null where the text is not exactly how it is encoded.';

create or replace function rag._token_object(code text)
    returns jsonb
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_text text;
    v_keys bigint;
begin
    v_text := convert_from(rag._from_base64url(_token_object.code), 'UTF8');
    if v_text is null or not pg_input_is_valid(v_text, 'jsonb') then
        return null;
    end if;
    if jsonb_typeof(v_text::jsonb) <> 'object' then
        return null;
    end if;
    -- Which of two would count is told by no standard.
    select count(*) into v_keys from json_object_keys(v_text::json);
    if v_keys <> (select count(*) from jsonb_object_keys(v_text::jsonb)) then
        return null;
    end if;
    return v_text::jsonb;
exception
    -- What is no UTF-8, and the character that Postgres does not take.
    when data_exception then
        return null;
end
$$;

comment on function rag._token_object(text) is
    'The JSON object in a part of a token, or null where there is none, or one with a key twice.';

create or replace function rag._refuse_token(detail text)
    returns void
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    raise exception 'the token is refused' using
        errcode = 'invalid_authorization_specification',
        detail = _refuse_token.detail,
        hint = 'A token is a JWT, signed HS256 with a key of rag.add_token_key, with the claims '
        'tenant, aud and exp. Have a new one made.';
end
$$;

comment on function rag._refuse_token(text) is 'Raise the error for a token that does not hold.';

create or replace function rag._token_moment(claims jsonb, claim text)
    returns timestamptz
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if jsonb_typeof(_token_moment.claims -> _token_moment.claim) <> 'number'
        or _token_moment.claims ->> _token_moment.claim !~ '^\d{1,11}(\.\d{1,9})?$'
    then
        perform rag._refuse_token(format('Its claim %s is no time.', _token_moment.claim));
    end if;
    return to_timestamp((_token_moment.claims ->> _token_moment.claim)::double precision);
end
$$;

comment on function rag._token_moment(jsonb, text) is
    'The time that a claim gives in seconds since 1970, null without that claim, or the error.';

create or replace function rag._verified_key(token text)
    returns rag.token_keys
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_parts text[] := string_to_array(_verified_key.token, '.');
    v_header jsonb;
    v_key rag.token_keys;
begin
    if cardinality(v_parts) <> 3
        or length(v_parts[1]) not between 1 and 1000
        or length(v_parts[2]) not between 1 and 8000
        -- 32 bytes
        or length(v_parts[3]) <> 43
    then
        return null;
    end if;
    v_header := rag._token_object(v_parts[1]);
    -- One algorithm, whatever the token would like. What crit lists we do not understand.
    if v_header is null
        or v_header -> 'alg' is distinct from '"HS256"'
        or v_header ? 'crit'
        or upper(coalesce(v_header ->> 'typ', 'JWT')) <> 'JWT'
        or jsonb_typeof(v_header -> 'kid') <> 'string'
    then
        return null;
    end if;
    for v_key in
        select k.*
        from rag.token_keys as k
        where not v_header ? 'kid' or k.name = v_header ->> 'kid'
        order by k.key_id desc
    loop
        -- Digests are compared, not signatures: how far they agree tells nothing of either.
        if sha256(convert_to(v_parts[3], 'UTF8')) = sha256(convert_to(
            rag._base64url(sha256(v_key.outer_block || sha256(
                v_key.inner_block || convert_to(v_parts[1] || '.' || v_parts[2], 'UTF8')
            ))),
            'UTF8'
        )) then
            return v_key;
        end if;
    end loop;
    return null;
end
$$;

comment on function rag._verified_key(text) is
    'The key that signed a token, or null where none did or it is no token.';

create or replace function rag._seal(
    seal bytea, key_id int, tenant_id int, expires bigint, is_local boolean
)
    returns text
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_said text := concat_ws(
        '.', _seal.key_id, _seal.tenant_id, _seal.expires,
        case when _seal.is_local then 't' else 's' end
    );
begin
    -- The beginning of a transaction, to the microsecond, is its own in a backend; and a backend is
    -- known by its pid, the start of its server and its client's port.
    return v_said || '.' || encode(
        sha256(_seal.seal || sha256(_seal.seal || convert_to(concat_ws(
            '|',
            v_said,
            current_database(),
            rag._role()::oid,
            pg_backend_pid(),
            extract(epoch from pg_postmaster_start_time()),
            coalesce(inet_client_port(), 0),
            case when _seal.is_local then extract(epoch from transaction_timestamp()) end
        ), 'UTF8'))),
        'hex'
    );
end
$$;

comment on function rag._seal(bytea, int, int, bigint, boolean) is
    'What the setting rag.authenticated holds for this caller, here and now, and for nobody else.';

create or replace function rag._unsealed_tenant(sealed text)
    returns int
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_parts text[];
    v_seal bytea;
begin
    if _unsealed_tenant.sealed !~ '^\d{1,9}\.\d{1,9}\.\d{1,12}\.[ts]\.[0-9a-f]{64}$' then
        return null;
    end if;
    v_parts := string_to_array(_unsealed_tenant.sealed, '.');
    if v_parts[3]::bigint <= extract(epoch from clock_timestamp()) then
        return null;
    end if;
    -- A key that was retired takes with it all that it let in.
    select k.seal into v_seal
    from rag.token_keys as k
    where k.key_id = v_parts[1]::int;
    if sha256(convert_to(_unsealed_tenant.sealed, 'UTF8')) = sha256(convert_to(
        rag._seal(
            v_seal, v_parts[1]::int, v_parts[2]::int, v_parts[3]::bigint, v_parts[4] = 't'
        ),
        'UTF8'
    )) then
        return v_parts[2]::int;
    end if;
    return null;
end
$$;

comment on function rag._unsealed_tenant(text) is
    'The tenant that rag.authenticated holds, or null where its seal is not ours, of another '
    'caller, session or transaction, or its time is over.';

create or replace function rag.authenticate(token text, is_local boolean default true)
    returns text
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_is_local boolean := coalesce(authenticate.is_local, true);
    v_key rag.token_keys;
    v_claims jsonb;
    v_expires timestamptz;
    v_tenant int;
begin
    if authenticate.token is null then
        perform rag._refuse_token('It is null.');
    end if;
    v_key := rag._verified_key(authenticate.token);
    if v_key.key_id is null then
        perform rag._refuse_token('It is malformed, or no key has signed it.');
    end if;
    -- From here on somebody with a key has written it.
    v_claims := rag._token_object(split_part(authenticate.token, '.', 2));
    if v_claims is null then
        perform rag._refuse_token('Its claims are no JSON object of distinct keys.');
    end if;
    v_expires := rag._token_moment(v_claims, 'exp');
    if v_expires is null then
        perform rag._refuse_token('It has no claim exp: it would never expire.');
    end if;
    if v_expires <= v_now - rag._leeway() then
        perform rag._refuse_token(format('It expired at %s.', v_expires));
    end if;
    if v_expires > v_now + v_key.max_lifetime + rag._leeway() then
        perform rag._refuse_token(format(
            'It expires at %s, and its key is for tokens of at most %s.', v_expires,
            v_key.max_lifetime
        ));
    end if;
    if rag._token_moment(v_claims, 'nbf') > v_now + rag._leeway() then
        perform rag._refuse_token('Its time has not come yet (nbf).');
    end if;
    -- One, or an array of them; a string is contained in an array as in itself.
    if coalesce(jsonb_typeof(v_claims -> 'aud'), '-') not in ('string', 'array')
        or not v_claims -> 'aud' @> to_jsonb(v_key.audience)
    then
        perform rag._refuse_token('It is for another audience (aud).');
    end if;
    if v_claims ? 'role'
        and v_claims -> 'role' is distinct from to_jsonb(pg_get_userbyid(rag._role()))
    then
        perform rag._refuse_token('It is for another role (role).');
    end if;
    if jsonb_typeof(v_claims -> 'tenant') is distinct from 'string' then
        perform rag._refuse_token('It names no tenant.');
    end if;
    select t.tenant_id into v_tenant
    from rag.tenants as t
    where
        t.name = v_claims ->> 'tenant'
        and (v_key.tenants is null or t.tenant_id = any(v_key.tenants));
    if v_tenant is null then
        perform rag._refuse_token('Its key has not the right to name that tenant, or there is '
            'none of that name.');
    end if;
    perform set_config(
        'rag.authenticated',
        rag._seal(
            v_key.seal, v_key.key_id, v_tenant,
            ceil(extract(epoch from v_expires + rag._leeway()))::bigint, v_is_local
        ),
        v_is_local
    );
    return v_claims ->> 'tenant';
end
$$;

comment on function rag.authenticate(text, boolean) is
    'Act as the tenant that a signed token names, until the transaction ends (is_local => false: '
    'until it expires, in this session), or be refused; returns the tenant''s name.';

-- Keys -----------------------------------------------------------------------------------------

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
