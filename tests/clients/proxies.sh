#!/usr/bin/env bash
# nginx and Caddy with the example configurations, and nginx with that of data/docs/scaling.md, in front of a live server that requires a token:
# clients get the same responses as without a proxy. Needs nginx, caddy, curl, gzip.
. "$(dirname "$0")/lib.sh"
PATH=$PATH:/usr/sbin

deploy=$repo/data/deploy
echo proxy-test-token >"$tmp/tokens"
bearer="Authorization: Bearer proxy-test-token"
serve --token-file "$tmp/tokens"

status() { curl -s -o "$tmp/answer" -w '%{http_code}' "$@"; }

# through NAME PORT: the same requests through each proxy; each proxy has a user of its own.
through() {
    local name=$1 front=http://127.0.0.1:$2 event
    until_true "$name" curl -fsS "$front/healthz"
    event='{"userId":"'$name'","name":"add_revenue","value":10.5}'

    same "$name: a post without the token" "$(status -d "$event" "$front/liveEvent")" 401
    same "$name: a post" "$(status -H "$bearer" -d "$event" "$front/liveEvent?ack=applied")" 200
    same "$name: gzip" "$(gzip -c <<<"$event" | status -H "$bearer" -H 'Content-Encoding: gzip' \
        --data-binary @- "$front/liveEvent")" 202
    same "$name: a chunked body" "$(status -H "$bearer" -H 'Transfer-Encoding: chunked' -d "$event" \
        "$front/liveEvent")" 202
    same "$name: an invalid event" "$(status -H "$bearer" -d '{}' "$front/liveEvent")" 422
    grep -q '"/userId"' "$tmp/answer" || fail "$name: $(cat "$tmp/answer")"
    head -c 9437184 /dev/zero | tr '\0' ' ' >"$tmp/large"
    same "$name: 9 MiB" "$(status -H "$bearer" --data-binary "@$tmp/large" "$front/liveEvent")" 413
    same "$name: a header that is not ASCII" "$(status -H "$bearer" -H 'cf-region: São Paulo' \
        -H $'x-latin-1: S\xe3o' "$front/readyz")" 200
    same "$name: an offer of HTTP/2" "$(status --http2 -H "$bearer" "$front/readyz")" 200
    same "$name: 64 KiB with Expect: 100-continue" "$(head -c 65536 /dev/zero | tr '\0' ' ' | status -H "$bearer" \
        -H 'Expect: 100-continue' --data-binary @- "$front/liveEvent")" 400
    same "$name: a foreign page" "$(status -H "$bearer" -H 'Origin: https://evil.example' -d "$event" \
        "$front/liveEvent")" 403
    same "$name: flush" "$(status -H "$bearer" -X POST "$front/flush")" 200
    same "$name: get" "$(status -H "$bearer" "$front/userEvents/$name")" 200
    grep -q '"revenue":31.5,"revenueMicros":"31500000","events":3' "$tmp/answer" || fail "$name: $(cat "$tmp/answer")"
    ok "$name: its user has 31.5 of 3 events"
}

# nginx_with PATH: nginx with a configuration for sites.
nginx_with() {
    local site=$1 at
    at=$(mktemp -d "$tmp/nginx.XXXX")
    cat >"$at/nginx.conf" <<EOF
daemon off;
pid $at/nginx.pid;
error_log $at/nginx.log;
events {}
http {
    access_log off;
    client_body_temp_path $at/body;
    proxy_temp_path $at/proxy;
    fastcgi_temp_path $at/fastcgi;
    uwsgi_temp_path $at/uwsgi;
    scgi_temp_path $at/scgi;
    include $site;
}
EOF
    chmod 711 "$tmp" "$at" # started by root, nginx has workers of another user, which keep large bodies in files
    nginx -q -e "$at/nginx.log" -c "$at/nginx.conf" &
    pids+=($!)
}

nginx_port=$(free_port)
sed "s/127.0.0.1:8000/127.0.0.1:$port/; s/127.0.0.1:8080/127.0.0.1:$nginx_port/" \
    "$deploy/nginx.conf" >"$tmp/site.conf"
nginx_with "$tmp/site.conf"
through nginx "$nginx_port"

# The load balancer: one of the two nodes is away.
balancer_port=$(free_port)
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=events.example.com \
    -addext subjectAltName=DNS:events.example.com -keyout "$tmp/events.key" -out "$tmp/events.crt" 2>/dev/null
sed -n '/^```nginx$/,/^```$/p' "$repo/data/docs/scaling.md" | sed "/^\`/d; s/10.0.0.1:8000/127.0.0.1:$(free_port)/
    s/10.0.0.2:8000/127.0.0.1:$port/; s/listen 443/listen 127.0.0.1:$balancer_port/; s#/etc/ssl/#$tmp/#" >"$tmp/nodes.conf"
nginx_with "$tmp/nodes.conf"
balanced() {
    curl -sf --cacert "$tmp/events.crt" --resolve "events.example.com:$balancer_port:127.0.0.1" -H "$bearer" \
        -o "$tmp/answer" -w '%{http_code}' "$@"
}
front=https://events.example.com:$balancer_port
until_true balancer balanced "$front/healthz"
for id in 1 2 3 4; do
    event='{"id":"balanced-'$id'","userId":"balanced","name":"add_revenue","value":1}'
    same "balancer: a post" "$(balanced -d "$event" "$front/liveEvent?ack=applied")" 200
done
same "balancer: get" "$(balanced "$front/userEvents/balanced")" 200
grep -q '"revenue":4,' "$tmp/answer" || fail "balancer: $(cat "$tmp/answer")"
ok "balancer: all events are at the node that is up"

caddy_port=$(free_port)
cat >"$tmp/Caddyfile" <<EOF
{
	admin off
	default_bind 127.0.0.1
}
import $deploy/Caddyfile
EOF
XDG_DATA_HOME=$tmp XDG_CONFIG_HOME=$tmp TALLYLINE_SITE=http://:$caddy_port \
    TALLYLINE_UPSTREAM=127.0.0.1:$port \
    caddy run --adapter caddyfile --config "$tmp/Caddyfile" 2>"$tmp/caddy.log" &
pids+=($!)
through caddy "$caddy_port"
