//! What travels between the controller and its users and hosts, and the client that both use. No behaviour.

mod client;
mod error;
mod host_api;
mod view;

pub use client::{Client, ClientError};
pub use error::{ApiDiagnostic, ApiError, ErrorCode};
pub use host_api::ReportAnswer;
pub use view::{
    DeployRequest, DeploymentView, EndpointView, EventView, HostView, ImageView, InstanceView, RoleView, ScaleRequest,
    ServiceView, SourceFile,
};
