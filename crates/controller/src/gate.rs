//! The gate: who asks a controller that does not lead is told so, and who leads.

use std::sync::{Arc, PoisonError, RwLock};

use axum::Json;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mayfly_api::{ApiError, ErrorCode};
use tower::ServiceExt;

/// From which side somebody comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Users.
    Users,
    /// Hosts.
    Hosts,
}

/// The routes of a controller that leads.
#[derive(Clone)]
struct Routes {
    users: Router,
    hosts: Router,
}

/// What stands behind the gate: the routes of a controller that leads, or the name of another.
pub struct Gate {
    open: RwLock<Option<Routes>>,
    leader: RwLock<String>,
}

impl Gate {
    /// A closed gate.
    pub fn closed() -> Arc<Gate> {
        Arc::new(Gate { open: RwLock::default(), leader: RwLock::default() })
    }

    /// This controller leads.
    pub fn open(&self, users: Router, hosts: Router) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = Some(Routes { users, hosts });
    }

    /// Another one leads.
    pub fn name(&self, leader: &str) {
        let mut known = self.leader.write().unwrap_or_else(PoisonError::into_inner);
        if *known != leader {
            tracing::info!(leader, "another controller leads; this one stands by");
            leader.clone_into(&mut known);
        }
    }

    /// The routes in front, on one side.
    pub fn router(self: &Arc<Gate>, side: Side) -> Router {
        Router::new().fallback(pass).with_state((Arc::clone(self), side))
    }
}

async fn pass(State((gate, side)): State<(Arc<Gate>, Side)>, request: Request) -> Response {
    let open = gate.open.read().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(routes) = open {
        let router = match side {
            Side::Users => routes.users,
            Side::Hosts => routes.hosts,
        };
        return match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
    }
    if request.uri().path() == "/healthz" {
        return StatusCode::OK.into_response();
    }
    let leader = gate.leader.read().unwrap_or_else(PoisonError::into_inner).clone();
    let message = match leader.as_str() {
        "" => "no controller leads yet; try again".to_owned(),
        leader => format!("this controller stands by; {leader} leads"),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(ApiError::new(ErrorCode::NotLeader, message))).into_response()
}
