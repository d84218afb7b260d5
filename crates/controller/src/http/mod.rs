//! The API server: one file a noun, short handlers, no decisions.

mod addresses;
mod auth;
mod backup;
mod breaker;
mod calls;
mod certificates;
mod deployments;
mod error;
mod events;
mod hosts;
mod images;
mod instances;
mod joining;
mod metrics;
mod plan;
mod services;
mod trace;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::HeaderMap;
use axum::routing::{delete, get, post, put};
use axum::{Router, middleware};
use mayfly_api::{PlanView, REQUEST_HEADER};
use mayfly_fabric::{Command, Input};
use mayfly_model::Digest;
use mayfly_model::limits::SOURCE_BYTES_MAX;
use mayfly_model::manifest::MANIFEST_BYTES_MAX;

pub(crate) use self::events::rfc3339;

use self::error::Failure;
use crate::calls::Calls;
use crate::config::ControllerConfig;
use crate::driver::{Driver, DriverError};
use crate::identity::Identity;
use crate::images::{Holders, ImageStore};
use crate::invariants::Invariants;
use crate::usage::Usage;

/// What all handlers share.
pub struct Shared {
    /// The core.
    pub driver: Driver,
    /// The images.
    pub images: ImageStore,
    /// The hosts that use them.
    pub holders: Holders,
    /// What VMs' disks take.
    pub usage: Usage,
    /// Calls from users to hosts.
    pub calls: Calls,
    /// Whether the records are as they have to be.
    pub invariants: Invariants,
    /// What is shown to hosts, and made for them.
    pub identity: Arc<Identity>,
    /// The configuration.
    pub config: ControllerConfig,
}

impl Shared {
    /// Carries out a user's command: once, however often the client sends it, if it has given it a name.
    async fn command(&self, headers: &HeaderMap, command: Command) -> Result<(), Failure> {
        let id = headers.get(REQUEST_HEADER).and_then(|value| value.to_str().ok());
        let input = match id {
            Some(id)
                if id.is_empty() || id.len() > 64 || !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') =>
            {
                return Err(error::invalid(format!("{REQUEST_HEADER} is 1 to 64 letters, digits and hyphens")));
            }
            Some(id) => Input::Request(id.to_owned(), command),
            None => Input::Command(command),
        };
        Ok(self.driver.submit(input).await.map(drop)?)
    }

    /// What a command would do.
    async fn plan(&self, command: Command) -> Result<PlanView, Failure> {
        let outcome = self.driver.submit(Input::Plan(command)).await?;
        Ok(self.driver.read(|core| plan::view(core, &outcome.changes)).await?)
    }

    /// The digests of all images.
    pub async fn image_digests(&self) -> Result<Vec<Digest>, DriverError> {
        self.driver.read(|core| core.state().images().values().map(|image| image.digest.clone()).collect()).await
    }
}

/// The routes for users.
pub fn users(shared: Arc<Shared>) -> Router {
    let manifest = DefaultBodyLimit::max(MANIFEST_BYTES_MAX as usize);
    let routes = Router::new()
        .route("/v1/images", get(images::list))
        .route("/v1/images/{name}", put(images::commit).delete(images::delete).layer(manifest))
        .route("/v1/images/{name}/manifest", get(images::manifest_by_name))
        .route("/v1/chunks/missing", post(images::missing))
        .route("/v1/chunks/{digest}", put(images::put_chunk).get(images::chunk))
        .route("/v1/addresses", get(addresses::list))
        .route("/v1/addresses/{name}", post(addresses::reserve).delete(addresses::release))
        .route("/v1/services", get(services::list))
        .route("/v1/services/{name}", get(services::show).post(services::create).delete(services::delete))
        .route("/v1/services/{name}/certificates", get(certificates::list).post(certificates::add))
        .route("/v1/services/{name}/certificates/{thumbprint}", delete(certificates::delete))
        .route("/v1/services/{name}/swap", post(deployments::swap))
        .route("/v1/services/{name}/deployments/{slot}", post(deployments::deploy).delete(deployments::delete))
        .route("/v1/services/{name}/deployments/{slot}/scale", post(deployments::scale))
        .route("/v1/services/{name}/deployments/{slot}/upgrade", post(deployments::upgrade))
        .route("/v1/services/{name}/deployments/{slot}/walk", post(deployments::walk))
        .route("/v1/services/{name}/deployments/{slot}/rollback", post(deployments::rollback))
        .route("/v1/services/{name}/deployments/{slot}/suspend", post(deployments::suspend))
        .route("/v1/services/{name}/deployments/{slot}/start", post(deployments::start))
        .route("/v1/services/{name}/deployments/{slot}/metrics/{role}/{metric}", put(deployments::metric))
        .route("/v1/instances", get(instances::list))
        .route("/v1/instances/{service}/{slot}/{name}/explain", get(instances::explain))
        .route("/v1/instances/{service}/{slot}/{name}/console", get(calls::console))
        .route("/v1/instances/{service}/{slot}/{name}/console-log", get(calls::console_log))
        .route("/v1/instances/{service}/{slot}/{name}/script", get(calls::script))
        .route("/v1/instances/{service}/{slot}/{name}/screenshot", get(calls::screenshot))
        .route("/v1/instances/{service}/{slot}/{name}/disk", get(calls::disk))
        .route("/v1/instances/{service}/{slot}/{name}/{verb}", post(instances::act))
        .route("/v1/trace", get(trace::show))
        .route("/metrics", get(metrics::show))
        .route("/v1/hosts", get(hosts::list))
        .route("/v1/hosts/{name}/{verb}", post(hosts::act))
        .route("/v1/breaker", get(breaker::show))
        .route("/v1/breaker/{scope}/reset", post(breaker::reset))
        .route("/v1/usage", get(breaker::usage))
        .route("/v1/events", get(events::list))
        .route("/v1/backup", get(backup::take))
        .route("/v1/tokens", get(joining::list).post(joining::make))
        .route("/v1/tokens/{id}", delete(joining::delete))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), auth::users));
    finish(routes, shared)
}

/// The routes for hosts.
pub fn hosts(shared: Arc<Shared>) -> Router {
    let routes = Router::new()
        .route("/host/v1/report", post(hosts::report))
        .route("/host/v1/wait", get(hosts::wait))
        .route("/host/v1/calls/{id}", get(calls::answer))
        .route("/host/v1/vms/{vm}/secrets", get(certificates::of_vm))
        .route("/host/v1/images/{digest}/manifest", get(images::manifest))
        .route("/host/v1/images/{digest}/holders", get(images::holders))
        .route("/host/v1/images/{digest}/order", get(images::order).put(images::put_order))
        .route("/host/v1/chunks/{digest}", get(images::chunk))
        .layer(middleware::from_fn(auth::in_time))
        .route("/host/v1/renew", post(joining::renew))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), auth::hosts))
        .route("/host/v1/join", post(joining::join));
    finish(routes, shared)
}

fn finish(routes: Router<Arc<Shared>>, shared: Arc<Shared>) -> Router {
    // A definition and a configuration, and the scripts they name.
    let body = DefaultBodyLimit::max(SOURCE_BYTES_MAX * 4);
    routes.route("/healthz", get(auth::nothing)).layer(body).with_state(shared)
}
