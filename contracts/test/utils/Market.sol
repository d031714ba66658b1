// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../../src/interfaces/IPaymentChannels.sol";
import {IStakeRegistry} from "../../src/interfaces/IStakeRegistry.sol";
import {IOcto, IOctoA, Shipped} from "./Shipped.sol";

/// @title The base of every test: all four contracts, a payer, a payee, a provider, and their keys
/// @dev Digests are asked from the contracts here; that they are the right ones is what Vectors.t.sol shows.
abstract contract Market is Shipped {
    uint64 internal constant PERIOD = 1 days;
    uint256 internal constant SESSION = 0x5e5510;
    uint256 internal constant SIGNER = 0x516e01;
    uint256 internal constant OTHER_SIGNER = 0x516e02;
    address internal constant PAYEE = 0x8ba1f109551bD432803012645Ac136ddd64DBA72;
    address internal constant PROVIDER = 0xdD2FD4581271e230360230F9337D5c0430Bf44C0;
    address internal constant STRANGER = 0xbDA5747bFD65F08deb54cb465eB87D40e51B197E;
    bytes32 internal constant PEER = keccak256("peer");

    address internal payer;
    uint256 internal payerKey = 0xCa54;
    IOcto internal octo;
    IOctoA internal octoA;
    IPaymentChannels internal channels;
    IStakeRegistry internal registry;

    function setUp() public virtual {
        vm.warp(1_800_000_000);
        payer = vm.addr(payerKey);
        octo = deployOcto();
        octoA = deployOctoA();
        channels = deployChannels(octo, "octo-test", PERIOD);
        registry = deployRegistry(octoA, "octo-test");
        octo.transfer(payer, 1_000_000 ether);
        octoA.transfer(PROVIDER, 100_000 ether);
        vm.prank(payer);
        octo.approve(address(channels), type(uint256).max);
        vm.prank(PROVIDER);
        octoA.approve(address(registry), type(uint256).max);
    }

    // ---- channels ------------------------------------------------------------------------------------------------

    function openChannel(uint256 salt, uint256 deposit) internal returns (bytes32) {
        address sessionKey = vm.addr(SESSION);
        vm.prank(payer);
        channels.open(PAYEE, sessionKey, bytes32(salt), deposit);
        return idOf(salt);
    }

    function requestClose(uint256 salt) internal {
        address sessionKey = vm.addr(SESSION);
        vm.prank(payer);
        channels.requestClose(PAYEE, sessionKey, bytes32(salt));
    }

    function termsOf(uint256 salt) internal view returns (IPaymentChannels.Terms memory) {
        return IPaymentChannels.Terms(payer, PAYEE, vm.addr(SESSION), bytes32(salt));
    }

    function idOf(uint256 salt) internal view returns (bytes32) {
        return channels.channelIdOf(termsOf(salt));
    }

    function voucher(uint256 salt, uint256 amount) internal view returns (IPaymentChannels.Voucher memory) {
        return voucherBy(SESSION, salt, amount);
    }

    /// @dev For the channel of `salt` with the usual session key, but signed by `key`.
    function voucherBy(uint256 key, uint256 salt, uint256 amount)
        internal
        view
        returns (IPaymentChannels.Voucher memory)
    {
        bytes32 root = keccak256(abi.encode("receipts", amount));
        (bytes32 r, bytes32 vs) = compact(key, channels.voucherDigest(idOf(salt), amount, root));
        return IPaymentChannels.Voucher(payer, vm.addr(SESSION), bytes32(salt), amount, root, r, vs);
    }

    // ---- stakes --------------------------------------------------------------------------------------------------

    function stakeAs(address staker, IStakeRegistry.Tier tier, uint256 amount) internal {
        vm.prank(staker);
        registry.stake(tier, amount);
    }

    function bindAs(address staker, uint256 key, bytes32 peer) internal {
        address signer = vm.addr(key);
        IStakeRegistry.Signature memory signature = bindingBy(key, staker, signer, peer);
        vm.prank(staker);
        registry.bind(signer, peer, signature);
    }

    function bindingBy(uint256 key, address staker, address signer, bytes32 peer)
        internal
        view
        returns (IStakeRegistry.Signature memory)
    {
        uint64 nonce = registry.identityOf(staker).nonce;
        (bytes32 r, bytes32 vs) = compact(key, registry.bindingDigest(staker, signer, peer, nonce));
        return IStakeRegistry.Signature(r, vs);
    }

    function receipt(uint256 task, uint64 seq, bytes32 body) internal pure returns (IStakeRegistry.Receipt memory) {
        return IStakeRegistry.Receipt({
            body: body,
            channel: keccak256("channel"),
            task: keccak256(abi.encode("task", task)),
            seq: seq,
            isFinal: false,
            tokensIn: 57,
            tokensOut: 128,
            amount: 1e15,
            transcriptRoot: keccak256("transcript"),
            quote: keccak256("quote")
        });
    }

    function signed(uint256 key, IStakeRegistry.Receipt memory said)
        internal
        view
        returns (IStakeRegistry.Signature memory)
    {
        (bytes32 r, bytes32 vs) = compact(key, registry.receiptDigest(said));
        return IStakeRegistry.Signature(r, vs);
    }

    /// @dev `reporter` shows two receipts of one step, signed by `key`.
    function slashAs(address reporter, uint256 key, uint256 task) internal returns (uint256 reward) {
        IStakeRegistry.Receipt memory one = receipt(task, 1, "one");
        IStakeRegistry.Receipt memory other = receipt(task, 1, "other");
        IStakeRegistry.Signature memory byOne = signed(key, one);
        IStakeRegistry.Signature memory byOther = signed(key, other);
        vm.prank(reporter);
        return registry.slashEquivocation(one, byOne, other, byOther);
    }
}
