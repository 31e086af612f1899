-- Signed tokens: who is which tenant, said by somebody who holds a key (JWT, HS256).
--
-- Verified with what every Postgres has: HMAC is two sha256 (RFC 2104) of blocks that are made of
-- the secret once, when the key is added. A token that holds leaves its tenant in the setting
-- rag.authenticated, sealed (13_seals.sql).

create or replace function rag._leeway()
    returns interval
    language sql
    immutable
    parallel safe
    security invoker
return interval '10 seconds';

comment on function rag._leeway() is
    'By how much the clock of who signs a token may differ from that of the server.';

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
            ceil(extract(epoch from v_expires + rag._leeway()))::bigint,
            case when not v_is_local then rag._session_id() end
        ),
        v_is_local
    );
    return v_claims ->> 'tenant';
end
$$;

comment on function rag.authenticate(text, boolean) is
    'Act as the tenant that a signed token names, until the transaction ends (is_local => false: '
    'until it expires, in this session), or be refused; returns the tenant''s name.';
