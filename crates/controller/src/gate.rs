//! The gate: who asks a controller that does not lead is told so, and who leads.

use std::sync::{Arc, PoisonError, RwLock};

use axum::Json;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mayfly_api::{ApiError, ErrorCode};
use tower::ServiceExt;

/// What stands behind the gate: the routes of a controller that leads, or the name of another.
pub struct Gate {
    open: RwLock<Option<Router>>,
    leader: RwLock<String>,
}

impl Gate {
    /// A closed gate.
    pub fn closed() -> Arc<Gate> {
        Arc::new(Gate { open: RwLock::default(), leader: RwLock::default() })
    }

    /// This controller leads.
    pub fn open(&self, router: Router) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = Some(router);
    }

    /// Another one leads.
    pub fn name(&self, leader: &str) {
        let mut known = self.leader.write().unwrap_or_else(PoisonError::into_inner);
        if *known != leader {
            tracing::info!(leader, "another controller leads; this one stands by");
            leader.clone_into(&mut known);
        }
    }

    /// The routes in front.
    pub fn router(self: &Arc<Gate>) -> Router {
        Router::new().fallback(pass).with_state(Arc::clone(self))
    }
}

async fn pass(State(gate): State<Arc<Gate>>, request: Request) -> Response {
    let open = gate.open.read().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(router) = open {
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
