//! The API server: one file a noun, short handlers, no decisions.

mod auth;
mod deployments;
mod error;
mod events;
mod hosts;
mod images;
mod instances;
mod services;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};
use axum::{Router, middleware};
use mayfly_model::limits::SOURCE_BYTES_MAX;
use mayfly_model::manifest::MANIFEST_BYTES_MAX;

use crate::config::ControllerConfig;
use crate::driver::Driver;
use crate::images::{Holders, ImageStore};
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
    /// The configuration.
    pub config: ControllerConfig,
}

/// All routes.
pub fn router(shared: Arc<Shared>) -> Router {
    let manifest = DefaultBodyLimit::max(MANIFEST_BYTES_MAX as usize);
    let users = Router::new()
        .route("/v1/images", get(images::list))
        .route("/v1/images/{name}", put(images::commit).delete(images::delete).layer(manifest))
        .route("/v1/images/{name}/manifest", get(images::manifest_by_name))
        .route("/v1/chunks/missing", post(images::missing))
        .route("/v1/chunks/{digest}", put(images::put_chunk).get(images::chunk))
        .route("/v1/services", get(services::list))
        .route("/v1/services/{name}", get(services::show).post(services::create).delete(services::delete))
        .route("/v1/services/{name}/deployments/{slot}", post(deployments::deploy))
        .route("/v1/services/{name}/deployments/{slot}/scale", post(deployments::scale))
        .route("/v1/instances", get(instances::list))
        .route("/v1/instances/{service}/{slot}/{name}/{verb}", post(instances::act))
        .route("/v1/hosts", get(hosts::list))
        .route("/v1/events", get(events::list))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), auth::users));
    let hosts = Router::new()
        .route("/host/v1/report", post(hosts::report))
        .route("/host/v1/wait", get(hosts::wait))
        .route("/host/v1/images/{digest}/manifest", get(images::manifest))
        .route("/host/v1/images/{digest}/holders", get(images::holders))
        .route("/host/v1/images/{digest}/order", get(images::order).put(images::put_order))
        .route("/host/v1/chunks/{digest}", get(images::chunk))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), auth::hosts));
    // A definition and a configuration, and the scripts they name.
    let body = DefaultBodyLimit::max(SOURCE_BYTES_MAX * 4);
    users.merge(hosts).route("/healthz", get(auth::nothing)).layer(body).with_state(shared)
}
