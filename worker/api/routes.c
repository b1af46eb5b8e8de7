/* Made of api/openapi.yaml by `make routes`. */

#include "worker/api/router.h"

/* clang-format off */
const struct route routes[] = {
    {"GET", "/api/v1/health", "health_show", NULL, 0},
    {"GET", "/api/v1/me", "me_show", NULL, 0},
    {"PATCH", "/api/v1/me", "me_update", NULL, ROUTE_BODY},
    {"PUT", "/api/v1/me/password", "me_password_update", NULL, ROUTE_BODY},
    {"POST", "/api/v1/me/recovery-codes", "me_recovery_codes_create", NULL, ROUTE_BODY},
    {"DELETE", "/api/v1/me/totp", "me_totp_delete", NULL, ROUTE_BODY},
    {"POST", "/api/v1/me/totp", "me_totp_create", NULL, ROUTE_BODY},
    {"PUT", "/api/v1/me/totp", "me_totp_update", NULL, ROUTE_BODY},
    {"DELETE", "/api/v1/session", "session_delete", NULL, 0},
    {"GET", "/api/v1/session", "session_show", NULL, 0},
    {"POST", "/api/v1/session", "session_create", NULL, ROUTE_BODY},
    {"GET", "/api/v1/sessions", "session_list", "session,current,created_at,last_seen_at,expires_at,address,user_agent", 0},
    {"DELETE", "/api/v1/sessions/{session}", "session_revoke", NULL, 0},
    {"GET", "/api/v1/time", "time_show", NULL, 0},
};
/* clang-format on */

const unsigned routes_count = sizeof(routes) / sizeof(routes[0]);
