#!/usr/bin/env bash
# /metrics of a live server: promtool reports no problem, the values are right, and no user is a
# label. Needs Debian's prometheus package (promtool), curl.
. "$(dirname "$0")/lib.sh"

serve
post "$url/liveEvent?ack=applied" '{"userId":"metric-user","name":"add_revenue","value":1}' >/dev/null
post "$url/liveEvent" 'no event' -o /dev/null && fail "invalid input was accepted"
curl -fsS "$url/metrics" -D "$tmp/head" -o "$tmp/metrics"

grep -qi '^content-type: text/plain; version=0.0.4' "$tmp/head" || fail "$(cat "$tmp/head")"
promtool check metrics <"$tmp/metrics" >"$tmp/promtool.log" 2>&1 || fail "$(cat "$tmp/promtool.log")"
[[ ! -s $tmp/promtool.log ]] || fail "$(cat "$tmp/promtool.log")"
ok "promtool check metrics reports nothing"

! grep -v '^#' "$tmp/metrics" | grep -v '^tallyline_' >/dev/null || fail "a name without tallyline_"
! grep -q metric-user "$tmp/metrics" || fail "a user is in the metrics"
value() { awk -v name="$1" '$1 == name { print $2 }' "$tmp/metrics"; }
same tallyline_events_received_total "$(value tallyline_events_received_total)" 2
same tallyline_events_accepted_total "$(value tallyline_events_accepted_total)" 1
same tallyline_events_refused_total "$(value tallyline_events_refused_total)" 1
same tallyline_lines "$(value tallyline_lines)" 1
same 'tallyline_lines_by_state{state="applied"}' "$(value 'tallyline_lines_by_state{state="applied"}')" 1
same tallyline_ready "$(value tallyline_ready)" 1
same tallyline_ack_duration_seconds_count "$(value tallyline_ack_duration_seconds_count)" 1
[[ $(value tallyline_flush_duration_seconds_count) -ge 1 ]] || fail "no flush was observed"
same 'requests to /liveEvent' "$(value 'tallyline_http_requests_total{route="/liveEvent",status="2xx"}')" 1
